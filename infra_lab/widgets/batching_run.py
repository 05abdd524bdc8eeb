"""A workload through an engine, as lanes: what the step timeline of the batching panel shows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from infra_lab.engine.core import EngineCore
from infra_lab.engine.recorder import StepRecord
from infra_lab.simulator.open_loop import serve_open_loop
from infra_lab.simulator.report import ServedRequest, ServiceLevel, SimulationReport
from infra_lab.simulator.traced_request import TracedRequest


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
    """Serve a workload on an engine whose clock is at its start, and report.

    Every request gets all its tokens, greedily. `progress` is told how many are done, and may raise to end the run: then
    no request stays in the engine. Raises InvalidRequestError for one that can never be served.
    """
    run = serve_open_loop(core, requests, slo=slo, skip_refused=False, progress=progress)
    admitted_s: dict[str, float] = {}
    for step in run.steps:
        for chunk in step.chunks:
            admitted_s.setdefault(chunk.request_id, step.start_s)
    lanes = [
        Lane(
            request.arrival_s,
            admitted_s[str(request.index)],
            request.token_times_s,
            request.prompt_tokens,
            _is_good(request, slo),
        )
        for request in run.report.served
    ]
    return BatchRun(run.steps, lanes, run.report, slo)


def _is_good(request: ServedRequest, slo: ServiceLevel) -> bool:
    ttft_s = request.first_token_s - request.arrival_s
    tpot_s = (request.last_token_s - request.first_token_s) / max(request.output_tokens - 1, 1)
    return bool(slo.is_kept(ttft_s, tpot_s, request.last_token_s - request.arrival_s))
