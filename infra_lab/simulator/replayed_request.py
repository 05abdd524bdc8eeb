"""A request of the scheduler that knows its answer, and when each of its tokens came."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from infra_lab.scheduler.request import Request


@dataclass(slots=True, eq=False, kw_only=True)
class ReplayedRequest(Request):
    """One request of a workload, on its way through a replay."""

    index: int
    """In the workload."""
    answer: Iterator[int]
    """Its output tokens that are still to come."""
    cached_tokens: int = 0
    """Of the prompt, found in the prefix cache when it first came in."""
    token_times_s: list[float] = field(default_factory=list)

    def answer_up_to(self, num_tokens: int) -> None:
        """Append the answer's next tokens, until it has so many with the prompt."""
        self.token_ids.extend(islice(self.answer, num_tokens - len(self.token_ids)))
