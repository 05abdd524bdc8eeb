"""A request as traces and workloads know it: when, how long, and which parts of its prompt others have too.

Traces hold no text. What matters to a prefix cache is only which tokens are equal, so a prompt is a list of spans, each the
beginning of an endless stream of tokens with a number. Equal numbers are equal tokens:

    first turn     ▏ system: 0, 40 tokens ▕ user: 7, 12 ▕                                    answered with stream 8
    second turn    ▏ system: 0, 40 tokens ▕ user: 7, 12 ▕ answer: 8, 90 ▕ user: 9, 15 ▕      answered with stream 10

The streams are a hash of number and position (splitmix64, Steele 2014): no state, the same on every machine.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from infra_lab.errors import ConfigError

_GOLDEN, _MIX_1, _MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
VOCAB_SIZE = 32_000
"""Of the streams, unless told otherwise: large enough that two of them have no block in common by chance."""


class Span(NamedTuple):
    """The first `num_tokens` tokens of a stream."""

    stream: int
    num_tokens: int


def stream_tokens(span: Span, vocab_size: int = VOCAB_SIZE) -> list[int]:
    """Return the tokens of a span, from 0 to `vocab_size` - 1; a longer span of the same stream goes on where it ends."""
    return _tokens((span,), vocab_size)


def _tokens(spans: Sequence[Span], vocab_size: int) -> list[int]:
    """Return the tokens of one span after the other, all in one go."""
    x = np.concatenate([np.arange(1, span.num_tokens + 1, dtype=np.uint64) for span in spans])
    seeds = np.array([(span.stream * _GOLDEN) % (1 << 64) for span in spans], dtype=np.uint64)
    x *= np.uint64(_MIX_1)  # arrays wrap around in silence
    x ^= np.repeat(seeds, [span.num_tokens for span in spans])
    for shift, factor in ((30, _MIX_1), (27, _MIX_2)):
        x ^= x >> np.uint64(shift)
        x *= np.uint64(factor)
    x ^= x >> np.uint64(31)
    tokens: list[int] = (x % np.uint64(vocab_size)).tolist()
    return tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedRequest:
    """One request of a trace or a workload. Raises ConfigError for numbers that no request has."""

    arrival_s: float
    """From the start; with `follows`, from the last token of that request (a user's think time)."""
    spans: tuple[Span, ...]
    """The prompt."""
    output_tokens: int
    answer_stream: int | None = None
    """What is generated, where a later prompt contains it; None: it does not matter."""
    follows: int | None = None
    """Index, in the same workload, of the request whose end this one waits for."""
    priority: int = 0
    """Lower goes first."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.arrival_s < float("inf"):
            raise ConfigError(f"arrival_s is {self.arrival_s}; it must be 0 or a positive number")
        if not self.spans or min(span.num_tokens for span in self.spans) < 1:
            raise ConfigError(f"spans are {self.spans}; a prompt needs at least one, each of at least 1 token")
        if self.output_tokens < 1:
            raise ConfigError(f"output_tokens is {self.output_tokens}; it must be at least 1")

    @property
    def prompt_tokens(self) -> int:
        """How long the prompt is."""
        return sum(span.num_tokens for span in self.spans)

    def prompt_token_ids(self, vocab_size: int = VOCAB_SIZE) -> list[int]:
        """Return the prompt as tokens."""
        return _tokens(self.spans, vocab_size)

    def answer_token_ids(self, vocab_size: int = VOCAB_SIZE) -> list[int]:
        """Return the answer as tokens; all 1 where it does not matter."""
        if self.answer_stream is None:
            return [1] * self.output_tokens
        return stream_tokens(Span(self.answer_stream, self.output_tokens), vocab_size)


def check_workload(requests: Sequence[TracedRequest]) -> None:
    """Raise ConfigError if there is no request, or one follows another that does not stand before it."""
    if not requests:
        raise ConfigError("the workload holds no request")
    for index, request in enumerate(requests):
        if request.follows is not None and not 0 <= request.follows < index:
            raise ConfigError(
                f"request {index} follows request {request.follows}; it must follow one that stands before it"
            )
