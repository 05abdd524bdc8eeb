"""How one request wants its tokens chosen, and when it wants them to end."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from infra_lab.errors import InvalidRequestError
from infra_lab.grammar import Grammar

MAX_LOGPROBS = 20
"""As many most probable tokens as the OpenAI API returns."""
_TINY, _HUGE = 1e-300, 1e300


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Parameters of one request, with the names and the meaning of the OpenAI API and of vLLM.

    Raises InvalidRequestError for a value outside its range, naming the field, the value and the range.
    """

    n: int = 1
    """How many continuations of the same prompt; they share the prompt's KV blocks."""
    max_tokens: int | None = 128
    """At most this many new tokens; None: up to the model's context."""
    min_tokens: int = 0
    """No end-of-sequence, stop token or stop string before this many new tokens."""
    temperature: float = 1.0
    """Divides the logits; 0 means greedy."""
    top_k: int = 0
    """Keep the k most probable tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of tokens whose probability reaches this (nucleus sampling, Holtzman 2019)."""
    min_p: float = 0.0
    """Drop tokens less probable than this fraction of the most probable one (Nguyen 2024)."""
    repetition_penalty: float = 1.0
    """Divide positive and multiply negative logits of tokens in prompt or output (CTRL, Keskar 2019)."""
    presence_penalty: float = 0.0
    """Subtracted once from the logit of every token that the output has."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit once for every time that the output has it."""
    seed: int | None = None
    """The same seed gives the same tokens, whatever else is in the batch; None: a fresh one."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of these token ids."""
    logprobs: int | None = None
    """Return log-probabilities of the chosen token and of this many most probable ones."""
    stop: Sequence[str] = ()
    """Strings that end the output; the text ends before the first one."""
    stop_token_ids: Sequence[int] = ()
    """Token ids that end the output, like the model's own end of sequence."""
    include_stop: bool = False
    """Keep the stop string in the text."""
    ignore_eos: bool = False
    """Go on past the end-of-sequence token (for benchmarks)."""
    grammar: Grammar | None = None
    """What the whole output must look like. Where it is complete the output may end, with "stop"; where the grammar has no
    more to say it ends, even before `min_tokens` and with `ignore_eos`. Stop strings and stop tokens may cut it short."""
    skip_special_tokens: bool = True
    """Leave special tokens out of the text."""

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        checks = (
            ("n", _is_whole(self.n, 1), "a whole number, at least 1"),
            (
                "max_tokens",
                self.max_tokens is None or _is_whole(self.max_tokens, 1),
                "a whole number, at least 1, or None",
            ),
            ("min_tokens", _is_whole(self.min_tokens, 0), "a whole number, at least 0"),
            ("temperature", _is_between(self.temperature, 0.0, _HUGE), "0 (greedy) or a positive number"),
            ("top_k", _is_whole(self.top_k, 0), "0 (keep all) or a positive whole number"),
            ("top_p", _is_between(self.top_p, _TINY, 1.0), "in (0, 1]"),
            ("min_p", _is_between(self.min_p, 0.0, 1.0), "in [0, 1]"),
            ("repetition_penalty", _is_between(self.repetition_penalty, _TINY, _HUGE), "a positive number"),
            ("presence_penalty", _is_between(self.presence_penalty, -2.0, 2.0), "in [-2, 2]"),
            ("frequency_penalty", _is_between(self.frequency_penalty, -2.0, 2.0), "in [-2, 2]"),
            ("seed", self.seed is None or _is_whole(self.seed, None), "a whole number, or None"),
            (
                "logprobs",
                self.logprobs is None or _is_whole(self.logprobs, 0, MAX_LOGPROBS),
                f"from 0 to {MAX_LOGPROBS}, or None",
            ),
            ("stop", all(isinstance(stop, str) and stop for stop in self.stop), "strings that are not empty"),
            ("stop_token_ids", all(_is_whole(token, None) for token in self.stop_token_ids), "whole numbers"),
            ("grammar", self.grammar is None or isinstance(self.grammar, Grammar), "a Grammar, or None"),
            ("logit_bias", all(_is_bias(*item) for item in self.logit_bias.items()), "a number for each token id"),
        )
        for name, is_valid, expected in checks:
            if not is_valid:
                raise InvalidRequestError(f"{name} is {getattr(self, name)!r}; it must be {expected}")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequestError(f"min_tokens is {self.min_tokens}, more than max_tokens, {self.max_tokens}")

    @property
    def allows_speculation(self) -> bool:
        """Whether the next token's distribution follows from the model's logits alone, and nobody wants to see those.

        Penalties, a grammar, a bias or a minimum length would have to be applied at every proposal in turn.
        """
        changes = self.repetition_penalty != 1.0 or self.presence_penalty or self.frequency_penalty or self.logit_bias
        return not changes and self.grammar is None and self.min_tokens == 0 and self.logprobs is None

    @property
    def is_greedy(self) -> bool:
        """Whether the most probable token is always taken."""
        return self.temperature == 0.0


def _is_whole(value: object, low: int | None, high: int | None = None) -> bool:
    if not isinstance(value, int) or isinstance(value, bool):
        return False
    return (low is None or value >= low) and (high is None or value <= high)


def _is_between(value: object, low: float, high: float) -> bool:
    """Whether it is a number within the borders; NaN is within none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def _is_bias(token_id: object, bias: object) -> bool:
    return _is_whole(token_id, None) and isinstance(bias, int | float) and bias == bias and bias < float("inf")
