"""What one branch has written so far, as text and as tokens.

    s += "The answer"      s += ": "       s.gen("a")        s += "\\nNext"    s.gen("b")
    └──────── one segment ────────┘  the model's own tokens  └─ a segment ─┘

Text is tokenized a segment at a time: all that is written between two generations. What has been tokenized never changes,
so every prompt begins with the one before it, and finds that in the prefix cache. The price is that no token spans the
border of two segments, where one tokenization of the whole text might have one. Generated tokens are kept as they are.
"""

from infra_lab.engine.outputs import SampleOutput
from infra_lab.models.tokenizer import Tokenizer


class Transcript:
    """Text that grows at its end, and its tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.text = ""
        self._tokenizer = tokenizer
        self._token_ids: list[int] = []
        self._segment = ""
        self._adds_special_tokens = True
        """Whether the next segment gets what the model wants before a text, as only the first may."""

    def write(self, text: str, *, is_template: bool = False) -> None:
        """Append text. A chat template's, at the beginning, brings its special tokens along."""
        if is_template and not self.text:
            self._adds_special_tokens = False
        self.text += text
        self._segment += text

    def tokens(self) -> list[int]:
        """Return the tokens of all that there is."""
        if self._segment or self._adds_special_tokens:
            self._token_ids += self._tokenizer.encode(self._segment, add_special_tokens=self._adds_special_tokens)
            self._segment, self._adds_special_tokens = "", False
        return list(self._token_ids)

    def append(self, text: str, token_ids: list[int]) -> None:
        """Append text whose tokens are known."""
        self.tokens()
        self.text += text
        self._token_ids += token_ids

    def take(self, sample: SampleOutput, *, includes_stop: bool) -> None:
        """Append what was generated, without the token that ended it.

        A stop string is no part of it either, unless it is wanted. Where one begins inside a token, the rest of that token's
        text begins the next segment.
        """
        token_ids, rest = sample.token_ids, ""
        if isinstance(sample.stop_reason, str):
            num_kept, rest = self._within(sample.text, token_ids)
            token_ids = token_ids[:num_kept]
        elif sample.finish_reason == "stop" and not includes_stop:
            token_ids = token_ids[:-1]
        self.append(sample.text[: len(sample.text) - len(rest)], token_ids)
        self.write(rest)

    def copy(self) -> "Transcript":
        """Return one that goes on from here on its own, with the same tokens."""
        other = Transcript(self._tokenizer)
        other._token_ids = self.tokens()
        other.text, other._adds_special_tokens = self.text, False
        return other

    def _within(self, text: str, token_ids: list[int]) -> tuple[int, str]:
        """Return how many of the tokens spell a beginning of `text`, and what they leave of it."""
        for num_tokens in range(len(token_ids), 0, -1):
            spelled = self._tokenizer.decode(token_ids[:num_tokens])
            if text.startswith(spelled):
                return num_tokens, text[len(spelled) :]
        return 0, text
