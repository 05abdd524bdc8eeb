"""The flight recorder: one record a step, and the only thing that widgets, metrics and traces read."""

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from infra_lab.engine.kv_map import KVMap, KVMapper
from infra_lab.paged_kv.block_manager import BlockCopy, BlockManager
from infra_lab.scheduler.plan import NO_TOKEN, StepPlan, StepResult
from infra_lab.scheduler.request import Request
from infra_lab.scheduler.scheduler import Scheduler


class ChunkRecord(NamedTuple):
    """What one request had computed in one step."""

    request_id: str
    start: int
    num_tokens: int
    token_id: int | None
    """The token sampled after it; None for a chunk short of the prompt's end."""


class Admission(NamedTuple):
    """A request that began to run, and how many of its tokens the prefix cache had."""

    request_id: str
    num_cached_tokens: int


class Ending(NamedTuple):
    """A request that ended in a step, and why."""

    request_id: str
    reason: str


class DraftRecord(NamedTuple):
    """What was proposed to one request in one step, and how much of it was kept."""

    request_id: str
    num_proposed: int
    num_accepted: int


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step of the engine: who, how much, why, and where the time went."""

    step: int
    start_s: float
    """On the engine's clock."""
    duration_s: float
    chunks: tuple[ChunkRecord, ...]
    admitted: tuple[Admission, ...]
    preempted: tuple[str, ...]
    finished: tuple[Ending, ...]
    num_running: int
    num_waiting: int
    used_blocks: int
    total_blocks: int
    copies: tuple[BlockCopy, ...]
    """Blocks copied on write."""
    drafts: tuple[DraftRecord, ...] = ()
    """Speculative decoding: the decodes that something was proposed to. Their chunks count one token."""
    timings_s: dict[str, float] = field(default_factory=dict)
    """Parts of the duration: schedule, propose, prepare, forward, sample, update, output. Where steps overlap, schedule and
    prepare are the next step's, and forward is how long this one was still waited for."""
    kv_map: KVMap | None = None
    """Every block at the end of the step, where the recorder was told to keep that."""

    @property
    def num_copies(self) -> int:
        """Blocks copied on write."""
        return len(self.copies)

    @property
    def num_tokens(self) -> int:
        """Tokens computed in this step."""
        return sum(chunk.num_tokens for chunk in self.chunks)

    @property
    def num_decodes(self) -> int:
        """Requests that computed one token and got the next."""
        return sum(chunk.num_tokens == 1 and chunk.token_id is not None for chunk in self.chunks)


class FlightRecorder:
    """Keeps the latest `max_steps` records, about a kilobyte each; `steps` is a list of them, oldest first.

    Set `keep_kv_maps` to have every record carry a picture of the whole KV pool; that costs time and memory in
    proportion to the pool, so it is off by default.
    """

    def __init__(self, max_steps: int = 10_000) -> None:
        self.keep_kv_maps = False
        self._steps: deque[StepRecord] = deque(maxlen=max_steps)
        self._mapper = KVMapper()

    @property
    def steps(self) -> list[StepRecord]:
        """A copy of the records."""
        return list(self._steps)

    @property
    def last(self) -> StepRecord | None:
        """The newest record."""
        return self._steps[-1] if self._steps else None

    def clear(self) -> None:
        """Forget all records."""
        self._steps.clear()

    def record(
        self,
        plan: StepPlan,
        result: StepResult,
        finished: list[Request],
        scheduler: Scheduler,
        *,
        start_s: float,
        duration_s: float,
        timings_s: dict[str, float],
    ) -> StepRecord:
        """Write down a step that has just been updated."""
        blocks: BlockManager = scheduler.blocks
        record = StepRecord(
            step=plan.step,
            start_s=start_s,
            duration_s=duration_s,
            chunks=tuple(
                ChunkRecord(
                    chunk.request.request_id, chunk.start, chunk.num_tokens, None if token == NO_TOKEN else token
                )
                for chunk, token in zip(plan.chunks, result.token_ids, strict=True)
            ),
            admitted=tuple(Admission(request.request_id, request.num_cached) for request in plan.admitted),
            preempted=tuple(request.request_id for request in plan.preempted),
            finished=tuple(Ending(request.request_id, request.finish_reason or "") for request in finished),
            num_running=len(scheduler.running),
            num_waiting=len(scheduler.waiting),
            used_blocks=blocks.num_blocks - blocks.num_free_blocks,
            total_blocks=blocks.num_blocks,
            copies=tuple(plan.copies),
            drafts=tuple(
                DraftRecord(plan.chunks[i].request.request_id, len(proposed), num_accepted)
                for i, (proposed, num_accepted) in result.speculated.items()
            ),
            timings_s=timings_s,
            kv_map=self._mapper.view(blocks, scheduler.running, finished) if self.keep_kv_maps else None,
        )
        self._steps.append(record)
        return record
