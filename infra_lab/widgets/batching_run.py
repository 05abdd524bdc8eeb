"""Requests that come at times of their own, through the engine's step loop: on any executor, on any clock."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from infra_lab.engine.core import EngineCore
from infra_lab.engine.recorder import StepRecord
from infra_lab.errors import InvariantError
from infra_lab.sampling_params import SamplingParams
from infra_lab.simulator.report import ServedRequest, ServiceLevel, SimulationReport, Usage, summarize
from infra_lab.simulator.traced_request import TracedRequest

VOCAB_SIZE = 256
"""Of the prompts: bytes, which the bundled model knows as well as a simulated one."""


class ComputeClock:
    """The machine's clock, from 0, without its idle time: sleeping moves it on at once.

    What is computed takes what it takes; the gap to the next arrival takes nothing.
    """

    def __init__(self) -> None:
        self._origin_s = time.perf_counter()

    def now(self) -> float:
        """Return seconds since the start, those slept through among them."""
        return time.perf_counter() - self._origin_s

    def sleep(self, seconds: float) -> None:
        """Move on by `seconds`."""
        self._origin_s -= max(0.0, seconds)


@dataclass(frozen=True, slots=True)
class Lane:
    """One request as the steps saw it, in seconds on the engine's clock."""

    arrival_s: float
    admitted_s: float
    """When the first step that computed some of it began."""
    token_times_s: list[float]
    prompt_tokens: int
    is_good: bool
    """Whether it kept the service level."""


@dataclass(frozen=True, slots=True)
class BatchRun:
    """What became of a workload."""

    steps: list[StepRecord]
    lanes: list[Lane]
    """In the workload's order."""
    report: SimulationReport
    slo: ServiceLevel


def serve(
    core: EngineCore,
    requests: Sequence[TracedRequest],
    slo: ServiceLevel,
    *,
    progress: Callable[[int], object] = lambda done: None,
) -> BatchRun:
    """Serve a workload in the order of its arrival times, which are on the engine's clock, and report.

    Every request gets all its tokens, greedily. `progress` is told how many are done, and may raise to end the run: then
    no request stays in the engine. Raises InvalidRequestError for one that can never be served.
    """
    begin_s = time.perf_counter()
    core.recorder.clear()
    token_times: list[list[float]] = [[] for _ in requests]
    try:
        _run(core, requests, token_times, progress)
    except BaseException:
        for index in range(len(requests)):
            core.abort(str(index))
        raise
    return _report(core.recorder.steps, requests, token_times, slo, time.perf_counter() - begin_s)


def _run(
    core: EngineCore,
    requests: Sequence[TracedRequest],
    token_times: list[list[float]],
    progress: Callable[[int], object],
) -> None:
    queued = done = 0
    while queued < len(requests) or core.has_work:
        now_s = core.clock.now()
        while queued < len(requests) and requests[queued].arrival_s <= now_s:
            _queue(core, requests[queued], str(queued))
            queued += 1
        deltas, end_s = core.step(), core.clock.now()
        for delta in deltas:
            token_times[int(delta.request_id)] += [end_s] * len(delta.token_ids)
            done += delta.finish_reason is not None
        progress(done)
        if core.last_step is None:
            _wait(core, requests[queued].arrival_s if queued < len(requests) else None)


def _queue(core: EngineCore, request: TracedRequest, name: str) -> None:
    params = SamplingParams(max_tokens=request.output_tokens, temperature=0.0, ignore_eos=True)
    core.add(
        request.prompt_token_ids(VOCAB_SIZE),
        params,
        request_id=name,
        priority=request.priority,
        arrival_s=request.arrival_s,
    )


def _wait(core: EngineCore, next_s: float | None) -> None:
    """Nothing could be computed: go on to the next arrival, or to the end of the wait of a batch that is not full."""
    times = [when for when in (next_s, core.scheduler.held_until_s) if when is not None]
    if not times:
        raise InvariantError(f"{len(core.scheduler.waiting)} requests wait, nobody comes, and the plan is empty")
    core.clock.sleep(min(times) - core.clock.now())


def _report(
    steps: list[StepRecord],
    requests: Sequence[TracedRequest],
    token_times: list[list[float]],
    slo: ServiceLevel,
    wall_s: float,
) -> BatchRun:
    admitted_s: dict[str, float] = {}
    preemptions = dict.fromkeys(map(str, range(len(requests))), 0)
    busy_s = used = 0.0
    for step in steps:
        for chunk in step.chunks:
            admitted_s.setdefault(chunk.request_id, step.start_s)
        for name in step.preempted:
            preemptions[name] += 1
        busy_s += step.duration_s
        used += step.duration_s * step.used_blocks / step.total_blocks
    served = [
        ServedRequest(
            index=index,
            arrival_s=request.arrival_s,
            prompt_tokens=request.prompt_tokens,
            cached_tokens=0,
            num_preemptions=preemptions[str(index)],
            output_tokens=request.output_tokens,
            first_token_s=times[0],
            last_token_s=times[-1],
            token_times_s=times,
        )
        for index, (request, times) in enumerate(zip(requests, token_times, strict=True))
    ]
    usage = Usage(
        num_steps=len(steps),
        request_steps=sum(len(step.chunks) for step in steps),
        busy_share=busy_s / max(times[-1] for times in token_times),
        kv_use_mean=used / busy_s,
        kv_use_max=max(step.used_blocks / step.total_blocks for step in steps),
        wall_s=wall_s,
    )
    report = summarize(served, usage, num_requests=len(requests), rejected={}, slo=slo)
    lanes = [
        Lane(
            request.arrival_s,
            admitted_s[str(request.index)],
            request.token_times_s,
            request.prompt_tokens,
            _is_good(request, slo),
        )
        for request in served
    ]
    return BatchRun(steps, lanes, report, slo)


def _is_good(request: ServedRequest, slo: ServiceLevel) -> bool:
    ttft_s = request.first_token_s - request.arrival_s
    tpot_s = (request.last_token_s - request.first_token_s) / max(request.output_tokens - 1, 1)
    return bool(slo.is_kept(ttft_s, tpot_s, request.last_token_s - request.arrival_s))
