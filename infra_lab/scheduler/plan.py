"""What the scheduler hands to an executor, and what comes back: the seam between policy and computation."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol, runtime_checkable

from infra_lab.paged_kv.block_manager import BlockCopy
from infra_lab.scheduler.request import Request

NO_TOKEN = -1


class Chunk(NamedTuple):
    """Compute tokens `start` to `start + num_tokens` of one request; sample after them if they are its last ones."""

    request: Request
    start: int
    num_tokens: int


@dataclass(slots=True)
class StepPlan:
    """One step: decodes (one token each) and prefill chunks, mixed under one token budget."""

    step: int
    chunks: list[Chunk] = field(default_factory=list)
    copies: list[BlockCopy] = field(default_factory=list)
    """Blocks to copy before anything is computed (copy-on-write)."""
    drafts: dict[int, int] = field(default_factory=dict)
    """By position in the plan: for how many proposals after a decode's token there is room, in the budget and in its blocks."""
    admitted: list[Request] = field(default_factory=list)
    preempted: list[Request] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        """Tokens to compute, over all chunks, proposals not counted."""
        return sum(chunk.num_tokens for chunk in self.chunks)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to compute."""
        return not self.chunks

    def without_finished(self) -> "StepPlan":
        """The plan less the chunks of requests that have ended since it was made; only where it has no `drafts`."""
        return replace(self, chunks=[chunk for chunk in self.chunks if not chunk.request.is_finished])


class Speculated(NamedTuple):
    """What came of the proposals for one decode: the first `num_accepted` are tokens of the request now."""

    proposed: list[int]
    num_accepted: int


class TokenLogprobs(NamedTuple):
    """Log-probabilities of one generated token, of the model's own distribution (before temperature and penalties)."""

    token_id: int
    logprob: float
    rank: int
    """1 for the most probable token."""
    top: list[tuple[int, float]]
    """The most probable tokens, best first: (token id, log-probability)."""


@dataclass(slots=True)
class StepResult:
    """What an executor computed for a plan."""

    token_ids: list[int]
    """One entry a chunk of the plan, in its order: the sampled token, or NO_TOKEN for a chunk short of its last token."""
    speculated: dict[int, Speculated] = field(default_factory=dict)
    """By position in the plan, where something was proposed: the accepted ones come before the entry in `token_ids`, and their
    KV is in the cache as well."""
    logprobs: dict[int, TokenLogprobs] = field(default_factory=dict)
    """By position in the plan, for the requests that asked for them."""
    errors: dict[int, str] = field(default_factory=dict)
    """By position in the plan: why no token could be sampled (logits that are not finite, say)."""
    timings_s: dict[str, float] = field(default_factory=dict)
    """Where the step's time went: "prepare", "forward", "sample"."""


class Executor(Protocol):
    """Computes plans; knows nothing of queues.

    `execute` reads the requests in the plan and mutates none of them. KV of the planned tokens is in the cache when it
    returns. If it raises, nothing of the step counts, and the same plan may be executed again.
    """

    def execute(self, plan: StepPlan) -> StepResult:
        """Run the model over the plan's tokens and sample where a request's last token was computed.

        Where the plan has room for drafts, it may propose as many tokens or fewer, and accept some of them.
        """
        ...

    def close(self) -> None:
        """Give back what it holds; a second call does nothing."""
        ...


@runtime_checkable
class OverlappingExecutor(Executor, Protocol):
    """One that computes while its caller goes on."""

    def launch(self, plan: StepPlan) -> Callable[[], StepResult]:
        """Start what `execute` does, and return what waits for its result.

        On return the plan and its requests' block tables have been read; their tokens and status are read again when the
        result is asked for, to sample. That must happen before the next launch. A request that has ended by then gets no token.
        """
        ...
