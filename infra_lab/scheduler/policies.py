"""Batching policies: who comes in, in which order, and what a step is made of. The scheduler does the rest alike for all.

    policy            comes in                        prompts    a step with prompts       in the field
    static            a batch, when the last is done  whole      they and who decodes      FasterTransformer 2021
    dynamic           the same, after a short wait    whole      they and who decodes      Triton Inference Server
    prefill-first     any time                        whole      they alone                vLLM 2023
    continuous        any time                        whole      they and who decodes      Orca, Yu 2022
    chunked-prefill   any time                        in chunks  decodes, then chunks      Sarathi-Serve, Agrawal 2024
    prefix-aware      any time, longest hit first     in chunks  "                         SGLang, Zheng 2024
    priority          any time, by aging priority     in chunks  "
    sjf               any time, shortest job first    in chunks  "
    deadline          any time, earliest due first    in chunks  "                         EDF, Liu & Layland 1973

Nobody starves. Every order is one of *virtual arrival times*: a prefix hit, a short job, a higher priority each count as so
many seconds of waiting, up to a bound. Whoever has waited longer than that is overtaken by nobody who comes later.
(Strict classes of priority, which all but the policy of that name keep, starve the lower class: that is what they are for.)

A policy is a frozen value of pure functions; what it must remember, the scheduler does.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import ClassVar, NamedTuple

from infra_lab.errors import ConfigError
from infra_lab.scheduler.request import Request
from infra_lab.scheduler.waiting_queue import WaitingQueue

Rank = tuple[int, float]
"""(class, virtual arrival in seconds), the smaller first; equal ones go by their order of arrival."""


class BatchRule(NamedTuple):
    """When a batch may start, once the one before it is done."""

    size: int
    """Requests in it, at most; as many waiting start it at once."""
    max_wait_s: float
    """How long the first of them waits for others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchingPolicy:
    """Chunked prefill, first come first served within a class of priority. The others change what they must."""

    name: ClassVar[str] = "chunked-prefill"
    chunks_prompts: ClassVar[bool] = True
    """Whether a prompt may be computed over several steps; else it must fit into one step's budget."""
    prefills_first: ClassVar[bool] = False
    """Whether prompts that find room have the step to themselves, and decodes wait."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and not 0 <= value < float("inf"):
                raise ConfigError(f"{field.name} of policy {self.name} is {value}; it must be 0 or a positive number")

    def rank(self, request: Request) -> Rank:
        """Where a request stands in the queue, and among those who run: the last of them is the first to be preempted."""
        return (request.priority, request.arrival_s)

    def outranks(self, waiting: Request, running: Request) -> bool:
        """Whether one who waits may take the seat, tokens or blocks of one who runs."""
        return waiting.priority < running.priority

    def batch_rule(self, num_waiting: int) -> BatchRule | None:
        """The rule of the next batch; None: no batches, whoever finds room comes in."""
        del num_waiting
        return None

    def line(self, waiting: WaitingQueue, num_cached: Callable[[Request], int]) -> Iterator[Request]:
        """Yield those who wait in the order in which they may come in; the one before has come in, or asks no more.

        `num_cached` says how many of a request's leading tokens the prefix cache holds now.
        """
        del num_cached
        while request := waiting.peek():
            yield request


@dataclass(frozen=True, slots=True, kw_only=True)
class ContinuousPolicy(BatchingPolicy):
    """Iteration-level batching: requests come and go at every step, and a prompt is computed whole beside the decodes.

    Decodes stall for as long as the longest prompt of a step takes.
    """

    name: ClassVar[str] = "continuous"
    chunks_prompts: ClassVar[bool] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillFirstPolicy(BatchingPolicy):
    """As continuous, but a step is of prompts or of decodes: as long as prompts find room, everybody else waits."""

    name: ClassVar[str] = "prefill-first"
    chunks_prompts: ClassVar[bool] = False
    prefills_first: ClassVar[bool] = True


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticPolicy(BatchingPolicy):
    """A batch of what waits starts when the one before it is done to its last token; nobody joins it, nobody is preempted
    for priority. A seat whose request has ended stays empty until then.
    """

    name: ClassVar[str] = "static"
    chunks_prompts: ClassVar[bool] = False
    batch_size: int = 8

    def __post_init__(self) -> None:
        BatchingPolicy.__post_init__(self)
        _check_sizes(self.name, batch_size=self.batch_size)

    def outranks(self, waiting: Request, running: Request) -> bool:
        """Never: a batch that has started is not disturbed."""
        del waiting, running
        return False

    def batch_rule(self, num_waiting: int) -> BatchRule | None:
        """Whoever is there starts at once."""
        del num_waiting
        return BatchRule(self.batch_size, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamicPolicy(StaticPolicy):
    """Batches as in static, but the first of a batch waits a moment for others; by how long the queue is, batches are larger
    and the wait is longer.

    In a queue of `peak_queue` a batch is full at once, so `peak_wait_s` never passes if `peak_size` is not above it.
    """

    name: ClassVar[str] = "dynamic"
    max_wait_s: float = 0.005
    peak_queue: int = 100
    peak_size: int = 32
    peak_wait_s: float = 0.010

    def __post_init__(self) -> None:
        StaticPolicy.__post_init__(self)
        _check_sizes(self.name, peak_queue=self.peak_queue, peak_size=self.peak_size)

    def batch_rule(self, num_waiting: int) -> BatchRule | None:
        """Small and soon, or large and later."""
        is_peak = num_waiting >= self.peak_queue
        return BatchRule(self.peak_size, self.peak_wait_s) if is_peak else BatchRule(self.batch_size, self.max_wait_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixAwarePolicy(BatchingPolicy):
    """The longest prefix hit first: who shares a prefix with what has just run comes in while it is still cached.

    Each cached token counts as `token_s` seconds of waiting. Looks at the `window` that have waited longest in each step.
    """

    name: ClassVar[str] = "prefix-aware"
    token_s: float = 0.001
    window: int = 128

    def __post_init__(self) -> None:
        BatchingPolicy.__post_init__(self)
        _check_sizes(self.name, window=self.window)

    def line(self, waiting: WaitingQueue, num_cached: Callable[[Request], int]) -> Iterator[Request]:
        """By class, then by arrival less what is cached."""

        def rank(request: Request) -> tuple[int, float, int]:
            return (
                request.priority,
                request.arrival_s - self.token_s * num_cached(request),
                request.sequence_number,
            )

        yield from sorted(waiting.first(self.window), key=rank)


@dataclass(frozen=True, slots=True, kw_only=True)
class PriorityPolicy(BatchingPolicy):
    """Priorities that age: one level counts as `level_s` seconds of waiting, so the lowest comes in as well.

    One who runs is preempted only for one who is a whole level ahead; so nobody is sent back for a request that came more
    than `level_s` later for each level between them.
    """

    name: ClassVar[str] = "priority"
    level_s: float = 5.0

    def rank(self, request: Request) -> Rank:
        """All in one class."""
        return (0, request.arrival_s + self.level_s * request.priority)

    def outranks(self, waiting: Request, running: Request) -> bool:
        """By a whole level, and of higher priority as such: waiting alone preempts nobody."""
        is_ahead = waiting.rank[1] + self.level_s <= running.rank[1]
        return is_ahead and waiting.priority < running.priority


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortestJobPolicy(BatchingPolicy):
    """Shortest job first, by the most tokens that a request may come to: prompt and max_tokens.

    Each token counts as `token_s` seconds less of waiting; with 0 it is first come, first served.
    """

    name: ClassVar[str] = "sjf"
    token_s: float = 0.05

    def rank(self, request: Request) -> Rank:
        """By class, then by arrival and length."""
        return (request.priority, request.arrival_s + self.token_s * request.max_total_tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadlinePolicy(BatchingPolicy):
    """Earliest deadline first; a request without a deadline of its own is due `default_slo_s` after its arrival."""

    name: ClassVar[str] = "deadline"
    default_slo_s: float = 1.0

    def rank(self, request: Request) -> Rank:
        """By class, then by when it is due."""
        due_s = request.arrival_s + self.default_slo_s if request.deadline_s is None else request.deadline_s
        return (request.priority, due_s)


POLICIES: dict[str, type[BatchingPolicy]] = {
    policy.name: policy
    for policy in (
        StaticPolicy,
        DynamicPolicy,
        PrefillFirstPolicy,
        ContinuousPolicy,
        BatchingPolicy,
        PrefixAwarePolicy,
        PriorityPolicy,
        ShortestJobPolicy,
        DeadlinePolicy,
    )
}


def policy_of(policy: str | BatchingPolicy) -> BatchingPolicy:
    """Return the policy of a name, with its defaults; a policy itself passes. Raises ConfigError, naming those there are."""
    if isinstance(policy, BatchingPolicy):
        return policy
    if policy not in POLICIES:
        raise ConfigError(f"unknown policy {policy!r}; known: {', '.join(POLICIES)}")
    return POLICIES[policy]()


def _check_sizes(name: str, **sizes: int) -> None:
    for what, size in sizes.items():
        if not isinstance(size, int) or size < 1:
            raise ConfigError(f"{what} of policy {name} is {size}; it must be a whole number, at least 1")
