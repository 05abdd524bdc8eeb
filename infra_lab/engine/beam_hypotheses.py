"""Beam search without an engine: which continuations are kept, which have ended, and when no better one can come.

The rules are those of transformers' `generate(num_beams=...)`, token for token; the idea is from speech recognition
(HARPY, Lowerre 1976). A score is the sum of log-probabilities divided by length ** length_penalty (GNMT, Wu 2016, has a
variant of it): 0 prefers the most probable sequence, which is a short one; more than 1 prefers long ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

EarlyStopping = bool | Literal["never"]


class OpenBeam(NamedTuple):
    """A continuation that goes on."""

    token_ids: tuple[int, ...]
    """Without the prompt."""
    logprob: float
    """Sum over its tokens."""
    parent: int
    """Which of the beams before it continues."""


class Hypothesis(NamedTuple):
    """A continuation that has ended."""

    token_ids: tuple[int, ...]
    """Without the prompt; a final end-of-sequence token included."""
    logprob: float
    score: float
    finish_reason: Literal["stop", "length"]


@dataclass(slots=True)
class Hypotheses:
    """The beams of one search: `open`, best first, all of one length; `ended`, best first, at most `width`."""

    width: int
    max_tokens: int
    length_penalty: float
    early_stopping: EarlyStopping
    """True: stop as soon as `width` have ended. False: stop when the best open one, as it is now, would not do better than
    the worst that has ended. "never": stop when it could not, however it goes on; so for length_penalty > 0 the bound is
    its log-probability at full length."""
    eos_token_ids: frozenset[int]
    open: list[OpenBeam] = field(default_factory=lambda: [OpenBeam((), 0.0, 0)])
    ended: list[Hypothesis] = field(default_factory=list)

    @property
    def num_candidates(self) -> int:
        """As many of a beam's most probable tokens decide: `width` that go on, and all that could end it."""
        return self.width + len(self.eos_token_ids)

    def advance(self, tops: Sequence[Sequence[tuple[int, float]]]) -> None:
        """Take each open beam's most probable tokens with their log-probabilities, `num_candidates` of them, best first.

        An end counts only among the best `width` continuations of all; behind them others go on in its stead.
        """
        length = len(self.open[0].token_ids) + 1
        candidates = [
            OpenBeam((*beam.token_ids, token_id), beam.logprob + logprob, parent)
            for parent, (beam, top) in enumerate(zip(self.open, tops, strict=True))
            for token_id, logprob in top
        ]
        candidates.sort(key=lambda candidate: -candidate.logprob)  # stable: of equals, the better parent's comes first
        is_last = length == self.max_tokens
        for token_ids, logprob, _ in candidates[: self.width]:
            is_stopped = token_ids[-1] in self.eos_token_ids
            if is_stopped or is_last:
                reason: Literal["stop", "length"] = "stop" if is_stopped else "length"
                self.ended.append(Hypothesis(token_ids, logprob, self._score(logprob, length), reason))
        self.ended.sort(key=lambda hypothesis: -hypothesis.score)
        del self.ended[self.width :]
        going_on = [candidate for candidate in candidates if candidate.token_ids[-1] not in self.eos_token_ids]
        self.open = [] if is_last else going_on[: self.width]

    @property
    def is_done(self) -> bool:
        """Whether nothing goes on, or nothing that does is worth it."""
        if not self.open:
            return True
        if len(self.ended) < self.width:
            return False
        if self.early_stopping is True:
            return True
        is_bound = self.early_stopping == "never" and self.length_penalty > 0
        length = self.max_tokens if is_bound else len(self.open[0].token_ids)
        return self._score(self.open[0].logprob, length) <= self.ended[-1].score

    def _score(self, logprob: float, length: int) -> float:
        return float(logprob / length**self.length_penalty)
