"""Text as it is generated, token by token, and never half a character.

A token is a piece of bytes, and a character may be spread over several:

    token            ' 你' begins      continues        ends, '好' begins      ends
    bytes            20 e4            bd               a0 e5                  a5 bd
    emitted          ' '              ''               '你'                   '好'

For byte-level BPE decoding is joining bytes, so an incremental UTF-8 decoder does it, one token at a time. Other
decoders look at neighbours (the first space of a text disappears; a run of "<0xE4>" tokens is text only if all of it is
UTF-8), so there a window of recent tokens is decoded with and without the new one, and the difference is the new text
(as text-generation-inference and vLLM do, 2023). A run of byte tokens is held back until a token of another kind ends
it: the next byte could still turn all of it into U+FFFD.
"""

import codecs

from infra_lab.models.token_bytes import fallback_byte
from infra_lab.models.tokenizer import Tokenizer


class IncrementalDetokenizer:
    """Turns a growing list of token ids into text, in O(1) amortized a token.

    What `add` returns is final. The concatenation of all `add`s and one `flush` at the end is
    `tokenizer.decode(all ids)`, and no U+FFFD appears that is not in that text.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_token_ids if skip_special_tokens else frozenset()
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._window: list[int] = []
        """Tokens whose text was emitted last, as context, then those not emitted yet (not used for byte-level)."""
        self._context_tokens = 0

    def add(self, token_id: int) -> str:
        """Take the next token; return the text that is now final, "" while a character is incomplete."""
        if token_id in self._skipped:
            return ""
        if self._tokenizer.is_byte_level:
            return self._utf8.decode(self._tokenizer.token_bytes(token_id))
        token = self._tokenizer.token_text(token_id)
        if token is None:
            return ""
        self._window.append(token_id)
        if self._tokenizer.has_byte_fallback and fallback_byte(token) is not None:
            return ""
        # A trailing U+FFFD that the token does not spell itself is the first bytes of a character.
        return self._new_text(is_final=token.endswith("\ufffd"))

    def flush(self) -> str:
        """Return what is left at the end of the output; bytes of an incomplete character become U+FFFD."""
        if self._tokenizer.is_byte_level:
            return self._utf8.decode(b"", final=True)
        return self._new_text(is_final=True)

    def _new_text(self, *, is_final: bool) -> str:
        before = self._decode(self._window[: self._context_tokens])
        after = self._decode(self._window)
        if len(after) <= len(before) or (after.endswith("\ufffd") and not is_final):
            return ""
        del self._window[: self._context_tokens]
        self._context_tokens = len(self._window)
        return after[len(before) :]

    def _decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=False)  # skipped tokens never enter the window
