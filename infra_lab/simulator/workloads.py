"""Workloads as requests: independent ones, and sessions whose turns share ever longer prefixes."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from infra_lab.errors import ConfigError
from infra_lab.simulator.lengths import LognormalLength
from infra_lab.simulator.traced_request import Span, TracedRequest
from infra_lab.simulator.workload import RequestShape

_STRIDE = 1 << 20
"""Streams of one session lie below its number times this: more turns than that nobody has."""


def independent_requests(times_s: Sequence[float], shapes: Sequence[RequestShape]) -> list[TracedRequest]:
    """Return a request for each time and shape; no two prompts have anything in common."""
    return [
        TracedRequest(arrival_s=time_s, spans=(Span(index, shape.prompt_tokens),), output_tokens=shape.output_tokens)
        for index, (time_s, shape) in enumerate(zip(times_s, shapes, strict=True))
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionModel:
    """Conversations of several turns: a system prompt, and each turn on top of all that was said before.

    A user reads, thinks and types between an answer's end and the next question: an exponential time. Turns are geometric,
    so that every answer is the last one with the same probability. Raises ConfigError for settings that make no session.
    """

    mean_turns: float = 4.0
    system_tokens: int = 512
    num_system_prompts: int = 1
    """Different ones; each session has one at random."""
    question: LognormalLength = field(default_factory=lambda: LognormalLength(median=40))
    answer: LognormalLength = field(default_factory=lambda: LognormalLength(median=130))
    mean_think_s: float = 20.0
    max_total: int = 8192
    """The context: a session ends before the turn that would not fit."""

    def __post_init__(self) -> None:
        for name in ("mean_turns", "num_system_prompts"):
            if not getattr(self, name) >= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.system_tokens < 0:
            raise ConfigError(f"system_tokens is {self.system_tokens}; it must not be negative")
        if not 0 <= self.mean_think_s < float("inf"):
            raise ConfigError(f"mean_think_s is {self.mean_think_s}; it must be 0 or a positive number")
        if self.max_total < self.system_tokens + 2:
            raise ConfigError(
                f"max_total is {self.max_total}; the system prompt of {self.system_tokens} tokens, a question and an "
                "answer do not fit"
            )

    def draw(self, starts_s: Sequence[float], seed: int = 0) -> list[TracedRequest]:
        """Return the turns of a session for each start, each following the turn before it; ordered by session.

        The first turn is cut to the context, so that each session has one.
        """
        rng = np.random.default_rng(seed)
        requests: list[TracedRequest] = []
        for number, start_s in enumerate(starts_s):
            self._session(requests, start_s, (number + 1) * _STRIDE, rng)
        return requests

    def _session(self, requests: list[TracedRequest], start_s: float, stream: int, rng: np.random.Generator) -> None:
        num_turns = int(rng.geometric(1 / self.mean_turns))
        questions, answers = self.question.draw(num_turns, rng), self.answer.draw(num_turns, rng)
        system = int(rng.integers(self.num_system_prompts))
        history: tuple[Span, ...] = (Span(system, self.system_tokens),) if self.system_tokens else ()
        follows: int | None = None
        when_s = start_s
        for turn, (question, answer) in enumerate(zip(questions, answers, strict=True)):
            left = self.max_total - sum(span.num_tokens for span in history)
            if turn and question + answer > left:
                return
            question = min(question, left - 1)
            asked, told = Span(stream + 2 * turn, question), Span(stream + 2 * turn + 1, min(answer, left - question))
            history += (asked,)
            requests.append(
                TracedRequest(
                    arrival_s=when_s,
                    spans=history,
                    output_tokens=told.num_tokens,
                    answer_stream=told.stream,
                    follows=follows,
                )
            )
            history += (told,)
            follows, when_s = len(requests) - 1, float(rng.exponential(self.mean_think_s))
