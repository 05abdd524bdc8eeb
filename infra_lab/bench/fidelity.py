"""The simulator against the engine that it simulates: the same requests at the same times, on either clock.

The cost model is calibrated on this machine in rounds between the runs (`simulator.calibrate_engine`), on requests of its
own, so that a machine that gets slower half way does so for both. Nothing is fitted to the runs that are compared.

Both are timed in CPU time of one thread, and waiting for the next arrival is skipped (`CPUClock`): what other
programs take of a shared core would be in the measurement, and no simulator could know it. is_wall has the wall clock instead.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import NamedTuple

from infra_lab.bench.shared_model import core_with
from infra_lab.clock import CPUClock, WallClock
from infra_lab.engine.core import EngineCore
from infra_lab.engine.llm import LLM
from infra_lab.scheduler.policies import BatchingPolicy, StaticPolicy
from infra_lab.simulator.arrivals import PoissonArrivals
from infra_lab.simulator.calibrate import Calibration, fit_cost
from infra_lab.simulator.calibrate_engine import timed_steps
from infra_lab.simulator.cost import LinearStepCost
from infra_lab.simulator.lengths import published_lengths
from infra_lab.simulator.open_loop import VOCAB_SIZE, serve_open_loop
from infra_lab.simulator.replay import simulate
from infra_lab.simulator.report import SimulationReport
from infra_lab.simulator.traced_request import TracedRequest
from infra_lab.simulator.workloads import independent_requests

CONTEXT = 512
WORKLOAD = "sharegpt"


class Setting(NamedTuple):
    """One way to serve, and how hard it is driven."""

    policy: str | BatchingPolicy
    max_num_seqs: int
    max_batched_tokens: int
    load: float
    """Of the requests/s that this setting completes when all come at once."""

    @property
    def name(self) -> str:
        """For a table."""
        policy = self.policy if isinstance(self.policy, str) else self.policy.name
        return f"{policy}, {self.max_num_seqs} seats, {self.max_batched_tokens} tokens, load {self.load:g}"


SETTINGS = (
    Setting("chunked-prefill", 4, 64, 0.5),
    Setting("chunked-prefill", 16, 128, 0.8),
    Setting("continuous", 8, CONTEXT + 8, 0.5),
    Setting("prefill-first", 16, CONTEXT + 16, 0.8),
    Setting(StaticPolicy(batch_size=8), 8, CONTEXT, 0.5),
    Setting("sjf", 8, 256, 0.8),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Medians over requests, and over repeats where the run is real."""

    setting: Setting
    ttft_s: float
    tpot_s: float
    simulated_ttft_s: float
    simulated_tpot_s: float

    @property
    def ttft_error(self) -> float:
        """(simulated - real) / real."""
        return self.simulated_ttft_s / self.ttft_s - 1

    @property
    def tpot_error(self) -> float:
        """(simulated - real) / real."""
        return self.simulated_tpot_s / self.tpot_s - 1


@dataclass(slots=True)
class _Runs:
    """One setting's runs."""

    setting: Setting
    core: EngineCore
    requests: list[TracedRequest]
    ttft_s: list[float] = field(default_factory=list)
    tpot_s: list[float] = field(default_factory=list)

    def compare(self, cost: LinearStepCost) -> Comparison:
        """Put the simulation beside the runs."""
        ttft_s, tpot_s = _medians(_simulated(self.core, self.requests, cost))
        return Comparison(
            setting=self.setting,
            ttft_s=median(self.ttft_s),
            tpot_s=median(self.tpot_s),
            simulated_ttft_s=ttft_s,
            simulated_tpot_s=tpot_s,
        )


class Fidelity(NamedTuple):
    """All settings on one model."""

    comparisons: list[Comparison]
    calibration: Calibration
    num_requests: int


def measure_fidelity(
    model: str,
    settings: Sequence[Setting] = SETTINGS,
    *,
    num_requests: int,
    repeats: int,
    is_wall: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Fidelity:
    """Run each setting for real `repeats` times, calibrate in between, and simulate each with the cost model of all rounds."""
    clock = WallClock() if is_wall else CPUClock()
    with LLM(
        model, clock=clock, device="cpu", num_threads=1, max_model_len=CONTEXT, num_kv_blocks=1024,
        enable_prefix_cache=False,
    ) as llm:  # fmt: skip
        calibrating = core_with(llm, max_num_seqs=max(s.max_num_seqs for s in settings), max_batched_tokens=CONTEXT)
        say(f"{model}: first calibration")
        timed_steps(calibrating)
        steps = timed_steps(calibrating, seed=1)
        all_runs = [_prepare(llm, setting, fit_cost(steps).cost, num_requests) for setting in settings]
        for repeat in range(repeats):
            for number, runs in enumerate(all_runs):
                say(f"{model}: {runs.setting.name}, {repeat + 1} of {repeats}")
                steps += timed_steps(calibrating, seed=2 + repeat * len(all_runs) + number)
                ttft_s, tpot_s = _medians(serve_open_loop(runs.core, runs.requests).report)
                runs.ttft_s.append(ttft_s)
                runs.tpot_s.append(tpot_s)
        steps += timed_steps(calibrating, seed=1 << 20)
    calibration = fit_cost(steps)
    return Fidelity([runs.compare(calibration.cost) for runs in all_runs], calibration, num_requests)


def median_error(errors: Iterable[float]) -> float:
    """Of their absolute values."""
    return median(map(abs, errors))


def _prepare(llm: LLM, setting: Setting, cost: LinearStepCost, num_requests: int) -> _Runs:
    """Find the setting's capacity by simulation, and draw requests at its share of that."""
    core = core_with(
        llm,
        policy=setting.policy,
        max_num_seqs=setting.max_num_seqs,
        max_batched_tokens=setting.max_batched_tokens,
    )
    shapes = published_lengths(WORKLOAD, max_total=CONTEXT).draw(num_requests, seed=1)
    at_once = _simulated(core, independent_requests([0.0] * num_requests, shapes), cost)
    arrivals = PoissonArrivals(rate_per_s=setting.load * at_once.requests_per_s)
    times_s = arrivals.times_s(num_requests=num_requests, seed=0)
    return _Runs(setting, core, independent_requests(times_s, shapes))


def _simulated(core: EngineCore, requests: Sequence[TracedRequest], cost: LinearStepCost) -> SimulationReport:
    blocks = core.scheduler.blocks
    return simulate(
        requests,
        core.scheduler.config,
        cost,
        num_kv_blocks=blocks.num_blocks,
        block_size=blocks.block_size,
        enable_prefix_cache=blocks.enable_prefix_cache,
        vocab_size=VOCAB_SIZE,
    )


def _medians(report: SimulationReport) -> tuple[float, float]:
    assert report.ttft_s is not None
    assert report.tpot_s is not None
    return report.ttft_s.p50, report.tpot_s.p50
