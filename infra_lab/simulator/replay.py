"""A workload through the real scheduler and block manager, on a virtual clock: every step, and no model.

    ┌─▶ whoever is due by now is queued ─▶ schedule ─▶ clock += cost of the plan ─▶ tokens ─▶ update ─┐
    └───────────────── whose turn follows a request that has ended is due after its think time ◀──────┘

It is the engine's step loop without what turns tokens into text, so a run costs what the scheduler's arithmetic costs; and
less where steps repeat themselves (`fast_forward`).
"""

import gc
import heapq
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from time import perf_counter
from typing import cast

from infra_lab.errors import InvalidRequestError, InvariantError, QueueFullError
from infra_lab.paged_kv.block_manager import BlockManager, PrefixIndexName
from infra_lab.sampling_params import SamplingParams
from infra_lab.scheduler.config import SchedulerConfig
from infra_lab.scheduler.plan import NO_TOKEN, StepPlan, StepResult
from infra_lab.scheduler.scheduler import Scheduler
from infra_lab.simulator.cost import ShapeCost, StepCost, StepShape
from infra_lab.simulator.fast_forward import DecodeRun, decodes_ahead
from infra_lab.simulator.replayed_request import ReplayedRequest
from infra_lab.simulator.report import ServedRequest, ServiceLevel, SimulationReport, Usage, summarize
from infra_lab.simulator.traced_request import VOCAB_SIZE, TracedRequest, check_workload

Progress = Callable[[int, int], None]
"""Told (requests that are done, all requests), now and then."""
_REPORT_EVERY = 256


def simulate(
    requests: Sequence[TracedRequest],
    config: SchedulerConfig,
    cost: StepCost,
    *,
    num_kv_blocks: int,
    block_size: int = 16,
    enable_prefix_cache: bool = True,
    prefix_index: PrefixIndexName = "hash",
    vocab_size: int = VOCAB_SIZE,
    slo: ServiceLevel | None = None,
    progress: Progress | None = None,
) -> SimulationReport:
    """Serve a workload to its end and report. Every request gets all its output tokens, as if it never said stop.

    A request that the scheduler refuses (too long, queue full) is counted, and the turns that follow it never come.
    Raises ConfigError for an empty workload or impossible sizes.
    """
    check_workload(requests)
    blocks = BlockManager(num_kv_blocks, block_size, enable_prefix_cache=enable_prefix_cache, prefix_index=prefix_index)
    replay = _Replay(requests, Scheduler(config, blocks), cost, vocab_size, progress or _say_nothing)
    begin_s = perf_counter()
    with without_garbage_collection():
        replay.run()
    return replay.report(perf_counter() - begin_s, slo)


class _Replay:
    def __init__(
        self,
        requests: Sequence[TracedRequest],
        scheduler: Scheduler,
        cost: StepCost,
        vocab_size: int,
        progress: Progress,
    ) -> None:
        self.requests, self.scheduler, self.cost, self.progress = requests, scheduler, cost, progress
        self.now_s = 0.0
        self.served: list[ServedRequest] = []
        self.rejected: Counter[str] = Counter()
        self.num_steps = self.request_steps = self.max_used = 0
        self.busy_s = self.used_block_s = 0.0
        self._vocab_size = vocab_size
        self._due = [(r.arrival_s, index) for index, r in enumerate(requests) if r.follows is None]
        heapq.heapify(self._due)
        self._followers: dict[int, list[int]] = {}
        for index, request in enumerate(requests):
            if request.follows is not None:
                self._followers.setdefault(request.follows, []).append(index)

    def run(self) -> None:
        """Step until nobody is left."""
        scheduler, due = self.scheduler, self._due
        cost = self.cost if isinstance(self.cost, ShapeCost) else None
        while due or scheduler.has_work:
            while due and due[0][0] <= self.now_s:
                self._queue(*heapq.heappop(due))
            if cost and (num_steps := decodes_ahead(scheduler)):
                self._decode(cost, num_steps)
                continue
            plan = scheduler.schedule(self.now_s)
            if plan.is_empty:
                self._wait()
            else:
                self._step(plan)

    def report(self, wall_s: float, slo: ServiceLevel | None) -> SimulationReport:
        """Sum up."""
        end_s, num_blocks = self.now_s, self.scheduler.blocks.num_blocks
        usage = Usage(
            num_steps=self.num_steps,
            request_steps=self.request_steps,
            busy_share=self.busy_s / end_s if end_s > 0 else 0.0,
            kv_use_mean=self.used_block_s / (self.busy_s * num_blocks) if self.busy_s > 0 else None,
            kv_use_max=self.max_used / num_blocks,
            wall_s=wall_s,
        )
        self.served.sort(key=lambda request: request.index)
        return summarize(self.served, usage, num_requests=len(self.requests), rejected=dict(self.rejected), slo=slo)

    def _queue(self, arrival_s: float, index: int) -> None:
        traced = self.requests[index]
        request = ReplayedRequest(
            token_ids=traced.prompt_token_ids(self._vocab_size),
            request_id=str(index),
            params=_params(traced.output_tokens),
            arrival_s=arrival_s,
            priority=traced.priority,
            index=index,
            answer=iter(traced.answer_token_ids(self._vocab_size)),
        )
        try:
            self.scheduler.add(request)
        except (InvalidRequestError, QueueFullError) as error:
            self.rejected["queue full" if isinstance(error, QueueFullError) else "does not fit"] += 1

    def _wait(self) -> None:
        """Go on to the next arrival, or to the end of the wait of a batch that is not full."""
        held_s = self.scheduler.held_until_s
        times = [*([self._due[0][0]] if self._due else []), *([] if held_s is None else [held_s])]
        if times:
            self.now_s = max(self.now_s, min(times))
        elif self.scheduler.has_work:
            raise InvariantError(
                f"{len(self.scheduler.waiting)} requests wait, {len(self.scheduler.running)} run, and the plan is empty"
            )  # else the last to come was refused

    def _decode(self, cost: ShapeCost, num_steps: int) -> None:
        """So many steps in which everybody decodes, or fewer: an arrival is queued before the first step after it."""
        run = DecodeRun(self.scheduler)
        shape_s, shape_of, num_requests = cost.shape_s, StepShape.of_decodes, run.num_requests
        due_s = self._due[0][0] if self._due else math.inf
        times_s: list[float] = []
        while run.num_steps < num_steps and self.now_s < due_s:
            stretch = run.begin_stretch(num_steps - run.num_steps)
            used, context, before = self._used_blocks(), run.context, len(times_s)
            for _ in range(stretch):
                self._spend(shape_s(shape_of(num_requests, context)), used)
                times_s.append(self.now_s)
                if self.now_s >= due_s:
                    break
                context += num_requests
            run.end_stretch(len(times_s) - before)
        self.num_steps += run.num_steps
        self.request_steps += run.num_steps * num_requests
        run.close(times_s)

    def _step(self, plan: StepPlan) -> None:
        self._spend(self.cost.step_s(plan), self._used_blocks())
        end_s = self.now_s
        for request in cast("list[ReplayedRequest]", plan.admitted):
            if not request.token_times_s:
                request.cached_tokens = request.num_cached
        token_ids: list[int] = []
        for request, start, num_tokens in cast("list[tuple[ReplayedRequest, int, int]]", plan.chunks):
            if start + num_tokens == len(request.token_ids):
                token_ids.append(next(request.answer))
                request.token_times_s.append(end_s)
            else:
                token_ids.append(NO_TOKEN)
        finished = self.scheduler.update(plan, StepResult(token_ids))
        self.num_steps += 1
        self.request_steps += len(token_ids)
        for request in cast("list[ReplayedRequest]", finished):
            self._serve(request, end_s)

    def _used_blocks(self) -> int:
        used = self.scheduler.blocks.num_blocks - self.scheduler.blocks.num_free_blocks
        self.max_used = max(self.max_used, used)
        return used

    def _spend(self, seconds: float, used_blocks: int) -> None:
        """Let a step's time go by."""
        self.now_s += seconds
        self.busy_s += seconds
        self.used_block_s += used_blocks * seconds

    def _serve(self, request: ReplayedRequest, end_s: float) -> None:
        self.served.append(
            ServedRequest(
                index=request.index,
                arrival_s=request.arrival_s,
                prompt_tokens=request.num_prompt_tokens,
                cached_tokens=request.cached_tokens,
                num_preemptions=request.num_preemptions,
                output_tokens=request.num_output_tokens,
                first_token_s=request.token_times_s[0],
                last_token_s=end_s,
                token_times_s=request.token_times_s,
            )
        )
        for index in self._followers.get(request.index, ()):
            heapq.heappush(self._due, (end_s + self.requests[index].arrival_s, index))
        if len(self.served) % _REPORT_EVERY == 0 or len(self.served) == len(self.requests):
            self.progress(len(self.served), len(self.requests))


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Pause the collector of cycles, of which a simulation makes none.

    Walking over all that lives, again and again, took a fifth of a run.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@cache
def _params(output_tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=output_tokens, temperature=0.0, ignore_eos=True)


def _say_nothing(done: int, total: int) -> None:
    """Nobody listens."""
