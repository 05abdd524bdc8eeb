"""Batching policies side by side: the same requests through the same seats, on the real engine and on a simulated GPU.

A trace has the lengths of a published workload (`simulator.lengths`), cut to a context, and comes in two ways:

    at once    everybody is there at the start: what a machine can put out
    Poisson    at 0.8 of the requests/s that chunked-prefill completes of those at once: latencies at an equal load

The engine is timed in CPU time of its one thread, waiting skipped (`CPUClock`).

Both serve ShareGPT's lengths, whose answers are longer than their prompts, and those of Azure's conversations, where it is the
other way round: cut to the 1,024 that the bundled model has, the latter on the GPU to 4,096.

Every policy has the same seats and the same KV memory, enough that nobody is preempted. The service level is five times what
a request takes that has the machine to itself, in the time to its first token and between tokens (the scale of AlpaServe, Li
2023). All requests are of one class and share no prefix, so priority and prefix-aware have nothing to choose by.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median
from typing import Any, NamedTuple, Protocol

from infra_lab.bench.report import BenchRow, at_least, at_most
from infra_lab.clock import CPUClock
from infra_lab.engine.llm import LLM
from infra_lab.engine.shared_model import core_with
from infra_lab.models.config import ModelConfig
from infra_lab.scheduler.config import SchedulerConfig
from infra_lab.scheduler.policies import POLICIES, BatchingPolicy, DynamicPolicy, StaticPolicy
from infra_lab.simulator.arrivals import PoissonArrivals
from infra_lab.simulator.calibrate import fit_cost
from infra_lab.simulator.calibrate_engine import timed_steps
from infra_lab.simulator.cost import StepCost
from infra_lab.simulator.cost_roofline import RooflineStepCost
from infra_lab.simulator.lengths import published_lengths
from infra_lab.simulator.open_loop import VOCAB_SIZE, serve_open_loop
from infra_lab.simulator.replay import simulate
from infra_lab.simulator.report import ServiceLevel, SimulationReport, Spread
from infra_lab.simulator.traced_request import TracedRequest
from infra_lab.simulator.workloads import independent_requests
from kernels.chips import CHIPS

SEATS = 32
BLOCK_SIZE = 16
LOAD = 0.8
SLO_SCALE = 5.0
ASKED_THROUGHPUT = 3.0
"""Continuous over static."""
ASKED_ITL = 1 / 3
"""Chunked prefill over prefill-first, 99th percentile of gaps between tokens."""
LLAMA_8B = ModelConfig(
    architecture="llama",
    vocab_size=128_256,
    hidden_size=4096,
    intermediate_size=14_336,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    max_position=131_072,
)


class Trace(NamedTuple):
    """Lengths by the name of a publication's workload, cut to a context."""

    lengths: str
    context: int

    def at(self, times_s: Sequence[float]) -> list[TracedRequest]:
        """Return requests that come at these times; the lengths are the same at each call."""
        shapes = published_lengths(self.lengths, max_total=self.context).draw(len(times_s), seed=1)
        return independent_requests(times_s, shapes)

    @property
    def kv_blocks(self) -> int:
        """Enough for a full context in every seat."""
        return SEATS * self.context // BLOCK_SIZE

    @property
    def name(self) -> str:
        """For a table."""
        return f"{self.lengths} lengths cut to {self.context}"


SHAREGPT = Trace("sharegpt", 1024)
ALPACA = Trace("alpaca", SHAREGPT.context)
"""Short ones, for a look."""
AZURE = Trace("azure-conversation", 4096)
SHORT_AZURE = Trace(AZURE.lengths, SHAREGPT.context)


class Served(Protocol):
    """A machine that serves a trace under a scheduler's settings."""

    name: str
    trace: Trace
    cost: StepCost
    """What a step takes on it, to know its capacity and its service level by."""
    chunk_budget: int
    """Tokens of a step where prompts are cut."""

    def serve(
        self, requests: Sequence[TracedRequest], settings: dict[str, Any], slo: ServiceLevel | None
    ) -> SimulationReport:
        """Serve all of them."""
        ...


class RealEngine:
    """The bundled model on this CPU. In 128 tokens a step takes about twice as long as 32 decodes do."""

    chunk_budget = 128

    def __init__(self, llm: LLM, cost: StepCost, trace: Trace = SHAREGPT) -> None:
        self.name = f"{llm.config.model}, this CPU"
        self.cost, self.trace = cost, trace
        self._llm = llm

    def serve(
        self, requests: Sequence[TracedRequest], settings: dict[str, Any], slo: ServiceLevel | None
    ) -> SimulationReport:
        """Serve them on the engine's clock."""
        core = core_with(self._llm, replace(self._llm.resolved.scheduler, **settings))
        return serve_open_loop(core, requests, slo=slo).report


class SimulatedGPU:
    """Llama 3.1 8B on an H100 at the peaks of its data sheet, with 2 ms a step for the host."""

    name = "simulated H100, 8B"
    chunk_budget = 512

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.cost: StepCost = RooflineStepCost(chip=CHIPS["H100"], model=LLAMA_8B, launch_s=0.002)

    def serve(
        self, requests: Sequence[TracedRequest], settings: dict[str, Any], slo: ServiceLevel | None
    ) -> SimulationReport:
        """Serve them on a virtual clock."""
        return _simulate(self, requests, settings, slo)


class PolicyComparison(NamedTuple):
    """All policies on one machine's trace, Poisson; and what was asked of them."""

    rate_per_s: float
    slo: ServiceLevel
    reports: dict[str, SimulationReport]


def settings_of(policy: str, machine: Served) -> dict[str, Any]:
    """Return the scheduler's settings: the same seats for all, batches of as many, and a budget for the policy.

    Whole prompts need one that the longest fits into beside the decodes: else it waits for the machine to be empty, and all
    behind it.
    """
    chosen: BatchingPolicy = POLICIES[policy]()
    if policy == "static":
        chosen = StaticPolicy(batch_size=SEATS)
    elif policy == "dynamic":
        chosen = DynamicPolicy(batch_size=SEATS, peak_size=SEATS)
    budget = machine.chunk_budget if chosen.chunks_prompts else machine.trace.context + SEATS
    return {"policy": chosen, "max_num_seqs": SEATS, "max_batched_tokens": budget}


def throughputs(machine: Served, num_requests: int, repeats: int) -> dict[str, float]:
    """Output tokens/s of continuous and of static batching, everybody there at once; medians of runs in turn."""
    requests = machine.trace.at([0.0] * num_requests)
    found: dict[str, list[float]] = {"continuous": [], "static": []}
    for _ in range(repeats):
        for policy, values in found.items():
            report = machine.serve(requests, settings_of(policy, machine), None)
            values.append(report.output_tokens_per_s)
    return {policy: median(values) for policy, values in found.items()}


def compare_policies(
    machine: Served, num_requests: int, say: Callable[[str], None] = lambda line: None
) -> PolicyComparison:
    """Serve the trace, Poisson, under every policy."""
    settings = settings_of("chunked-prefill", machine)
    rate_per_s = LOAD * _simulate(machine, machine.trace.at([0.0] * num_requests), settings).requests_per_s
    times_s = PoissonArrivals(rate_per_s=rate_per_s).times_s(num_requests=num_requests, seed=0)
    requests = machine.trace.at(times_s)
    slo = _service_level(machine, settings, num_requests)
    reports = {}
    for policy in POLICIES:
        say(f"{machine.name}: {policy}")
        reports[policy] = machine.serve(requests, settings_of(policy, machine), slo)
    return PolicyComparison(rate_per_s, slo, reports)


def policy_rows(*, quick: bool, say: Callable[[str], None]) -> list[BenchRow]:
    """Continuous beside static, chunked prefill beside prefill-first, and a row for each policy."""
    rows: list[BenchRow] = []
    with LLM(
        "tiny", clock=CPUClock(), device="cpu", num_threads=1, max_model_len=SHAREGPT.context,
        num_kv_blocks=SHAREGPT.kv_blocks, enable_prefix_cache=False,
    ) as llm:  # fmt: skip
        say("tiny: calibration, for its capacity and service level")
        seats = 4 if quick else SEATS
        config = replace(llm.resolved.scheduler, max_num_seqs=seats, max_batched_tokens=SHAREGPT.context)
        steps = timed_steps(core_with(llm, config))
        cost = fit_cost(steps).cost
        real = [(ALPACA, seats, 1)] if quick else [(SHAREGPT, 64, 2), (SHORT_AZURE, 64, 2)]
        machines: list[tuple[Served, int, int]] = [
            *((RealEngine(llm, cost, trace), number, repeats) for trace, number, repeats in real),
            *((SimulatedGPU(trace), 100 if quick else 1000, 1) for trace in (SHAREGPT, AZURE)),
        ]
        for machine, num_requests, repeats in machines:
            say(f"{machine.name}: continuous beside static")
            rows.append(_throughput_row(machine, throughputs(machine, num_requests, repeats), num_requests))
            rows += _comparison_rows(machine, compare_policies(machine, num_requests, say), num_requests)
    return rows


def _throughput_row(machine: Served, speeds: dict[str, float], num_requests: int) -> BenchRow:
    return at_least(
        f"continuous, {machine.name}",
        speeds["continuous"],
        "tok/s",
        f"static, {SEATS} seats both",
        speeds["static"],
        ASKED_THROUGHPUT,
        f"{num_requests} requests of {machine.trace.name}, all there at once",
    )


def _comparison_rows(machine: Served, comparison: PolicyComparison, num_requests: int) -> list[BenchRow]:
    reports, slo = comparison.reports, comparison.slo
    assert slo.ttft_s is not None
    assert slo.tpot_s is not None
    chunked, whole = reports["chunked-prefill"], reports["prefill-first"]
    rows = [
        at_most(
            f"p99 ITL, chunked, {machine.name}",
            1e3 * _of(chunked.itl_s).p99,
            "ms",
            "prefill-first, equal load",
            1e3 * _of(whole.itl_s).p99,
            ASKED_ITL,
            f"{num_requests} requests of {machine.trace.name}, Poisson at {LOAD:g} of capacity, {comparison.rate_per_s:.3g}/s",
        )
    ]
    asked = f"TTFT ≤ {1e3 * slo.ttft_s:.0f} ms, TPOT ≤ {1e3 * slo.tpot_s:.1f} ms"
    for policy, report in reports.items():
        note = f"{policy}: {figures(report)}"
        rows.append(
            at_least(
                f"  {policy}",
                report.goodput_per_s or 0.0,
                "good/s",
                f"arrivals; {asked}",
                comparison.rate_per_s,
                None,
                note,
            )
        )
    return rows


def figures(report: SimulationReport) -> str:
    """A run in one line."""
    ttft, itl = _of(report.ttft_s), _of(report.itl_s)
    return (
        f"{report.output_tokens_per_s:,.0f} tok/s, TTFT p50 {1e3 * ttft.p50:,.0f} p99 {1e3 * ttft.p99:,.0f} ms, "
        f"ITL p99 {1e3 * itl.p99:,.1f} ms, {report.good_share or 0.0:.0%} good, KV {report.kv_use_mean or 0.0:.0%}"
    )


def _service_level(machine: Served, settings: dict[str, Any], num_requests: int) -> ServiceLevel:
    """Five times a lone request's median times."""
    alone = machine.trace.at([1e6 * index for index in range(num_requests)])
    report = _simulate(machine, alone, settings)
    return ServiceLevel(ttft_s=SLO_SCALE * _of(report.ttft_s).p50, tpot_s=SLO_SCALE * _of(report.tpot_s).p50)


def _simulate(
    machine: Served, requests: Sequence[TracedRequest], settings: dict[str, Any], slo: ServiceLevel | None = None
) -> SimulationReport:
    return simulate(
        requests,
        SchedulerConfig(max_model_len=machine.trace.context, **settings),
        machine.cost,
        num_kv_blocks=machine.trace.kv_blocks,
        block_size=BLOCK_SIZE,
        enable_prefix_cache=False,
        vocab_size=VOCAB_SIZE,
        slo=slo,
    )


def _of(spread: Spread | None) -> Spread:
    assert spread is not None, "the trace has requests of more than one token"
    return spread
