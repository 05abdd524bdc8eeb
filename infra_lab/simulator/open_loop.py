"""A workload through an engine's step loop, requests coming when they come: on any executor, on any clock.

The loop is the one of the replay, with all that an engine does: whoever is due is queued, then the engine steps. A token's
time is when `step` has returned, as a caller sees it. It ends in the simulator's own report.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

from infra_lab.engine.core import EngineCore
from infra_lab.engine.outputs import OutputDelta
from infra_lab.engine.recorder import StepRecord
from infra_lab.errors import ConfigError, InvalidRequestError, InvariantError, QueueFullError
from infra_lab.sampling_params import SamplingParams
from infra_lab.simulator.report import ServedRequest, ServiceLevel, SimulationReport, Usage, summarize
from infra_lab.simulator.traced_request import TracedRequest

VOCAB_SIZE = 256
"""Of the prompts' tokens: bytes, which the bundled model's vocabulary has, and every other one."""


@dataclass(frozen=True, slots=True)
class OpenLoopRun:
    """What became of a workload."""

    report: SimulationReport
    """Seconds from the beginning of the run."""
    steps: list[StepRecord]
    """Those that computed something; on the engine's clock."""


def serve_open_loop(
    core: EngineCore,
    requests: Sequence[TracedRequest],
    *,
    slo: ServiceLevel | None = None,
    skip_refused: bool = True,
    progress: Callable[[int], object] = lambda done: None,
) -> OpenLoopRun:
    """Serve independent requests, each from its arrival, counted from now, to all of its output tokens, greedily.

    Blocks in use are those at the ends of steps. `progress` is told how many are done, and may raise to end the run: then no
    request stays in the engine.

    skip_refused: count those that can't be served in the report, and go on; else raise what the engine says of the first.

    Raises ConfigError for requests that follow another one.
    """
    if any(request.follows is not None for request in requests):
        raise ConfigError("a request follows another one; an open loop takes independent requests only")
    run = _OpenLoop(core, requests, skip_refused, progress)
    try:
        run.serve()
    except BaseException:
        for index in range(len(requests)):
            core.abort(str(index))
        raise
    return OpenLoopRun(run.report(slo), run.steps)


class _OpenLoop:
    def __init__(
        self,
        core: EngineCore,
        requests: Sequence[TracedRequest],
        skip_refused: bool,
        progress: Callable[[int], object],
    ) -> None:
        self.core, self.requests, self.skip_refused, self.progress = core, requests, skip_refused, progress
        self.order = sorted(range(len(requests)), key=lambda index: requests[index].arrival_s, reverse=True)
        """Those to come, the next one last."""
        self.start_s, self.wall_start_s = core.clock.now(), perf_counter()
        self.times_s: list[list[float]] = [[] for _ in requests]
        self.last: dict[int, OutputDelta] = {}
        self.rejected: Counter[str] = Counter()
        self.steps: list[StepRecord] = []
        self.num_done = 0

    def now_s(self) -> float:
        """Seconds since the start."""
        return self.core.clock.now() - self.start_s

    def serve(self) -> None:
        """Step until nobody is left."""
        core, order = self.core, self.order
        while order or core.has_work:
            while order and self.due_s(order[-1]) <= core.clock.now():
                self.queue(order.pop())
            next_s = self.due_s(order[-1]) - core.clock.now() if order else math.inf
            if not core.has_work:
                core.clock.sleep(next_s if order else 0.0)  # nothing is left where the last to come was refused
            elif not self.step():
                if core.scheduler.held_until_s is None and not order:
                    raise InvariantError(
                        f"{len(core.scheduler.waiting)} requests wait, nobody comes, and the plan is empty"
                    )
                core.clock.sleep(next_s if core.scheduler.held_until_s is None else min(core.held_s, next_s))

    def due_s(self, index: int) -> float:
        """When a request comes, on the engine's clock."""
        return self.start_s + self.requests[index].arrival_s

    def queue(self, index: int) -> None:
        """Add one request."""
        traced = self.requests[index]
        params = SamplingParams(max_tokens=traced.output_tokens, temperature=0.0, ignore_eos=True)
        try:
            self.core.add(
                traced.prompt_token_ids(VOCAB_SIZE),
                params,
                request_id=str(index),
                priority=traced.priority,
                arrival_s=self.due_s(index),
            )
        except (InvalidRequestError, QueueFullError) as error:
            if not self.skip_refused:
                raise
            self.rejected["queue full" if isinstance(error, QueueFullError) else "does not fit"] += 1

    def step(self) -> bool:
        """Run one step; return whether anything was computed."""
        deltas = self.core.step()
        end_s = self.now_s()
        if self.core.last_step is None:
            return False
        for delta in deltas:
            index = int(delta.request_id)
            self.times_s[index] += [end_s] * len(delta.token_ids)
            self.last[index] = delta
            self.num_done += delta.finish_reason is not None
        record = self.core.recorder.last
        assert record is not None
        self.steps.append(record)
        self.progress(self.num_done)
        return True

    def report(self, slo: ServiceLevel | None) -> SimulationReport:
        """Sum up."""
        served = [
            ServedRequest(
                index=index,
                arrival_s=self.requests[index].arrival_s,
                prompt_tokens=delta.metrics.num_prompt_tokens,
                cached_tokens=delta.metrics.num_cached_tokens,
                num_preemptions=delta.metrics.num_preemptions,
                output_tokens=len(self.times_s[index]),
                first_token_s=self.times_s[index][0],
                last_token_s=self.times_s[index][-1],
                token_times_s=self.times_s[index],
            )
            for index, delta in sorted(self.last.items())
        ]
        steps, end_s, num_blocks = self.steps, self.now_s(), self.core.scheduler.blocks.num_blocks
        busy_s = sum(step.duration_s for step in steps)
        used = sum(step.used_blocks * step.duration_s for step in steps)
        usage = Usage(
            num_steps=len(steps),
            request_steps=sum(len(step.chunks) for step in steps),
            busy_share=busy_s / end_s if end_s > 0 else 0.0,
            kv_use_mean=used / (busy_s * num_blocks) if busy_s > 0 else None,
            kv_use_max=max((step.used_blocks for step in steps), default=0) / num_blocks,
            wall_s=perf_counter() - self.wall_start_s,
        )
        return summarize(served, usage, num_requests=len(self.requests), rejected=dict(self.rejected), slo=slo)
