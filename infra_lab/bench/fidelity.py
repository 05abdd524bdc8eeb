"""The simulator against the engine that it simulates: the same requests at the same times, on either clock.

The cost model is calibrated on this machine in rounds between the runs (`simulator.calibrate_engine`), on requests of its
own; a run is simulated with what the rounds before and after it say, so that a machine that gets slower half way does so for
both. Nothing is fitted to the runs that are compared.

Both are timed in CPU time of one thread, and waiting for the next arrival is skipped (`CPUClock`): what other
programs take of a shared core would be in the measurement, and no simulator could know it. is_wall has the wall clock instead.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import NamedTuple

from infra_lab.clock import CPUClock, WallClock
from infra_lab.engine.core import EngineCore
from infra_lab.engine.llm import LLM
from infra_lab.engine.shared_model import core_with
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
    """Medians over requests, and then over repeats."""

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


class _Latencies(NamedTuple):
    """Medians over the requests of one run."""

    ttft_s: float
    tpot_s: float


@dataclass(slots=True)
class _Runs:
    """One setting's runs."""

    setting: Setting
    core: EngineCore
    requests: list[TracedRequest]
    real: list[_Latencies] = field(default_factory=list)
    simulated: list[_Latencies] = field(default_factory=list)

    def run(self) -> None:
        """Serve the requests on the engine."""
        self.real.append(_latencies(serve_open_loop(self.core, self.requests).report))

    def simulate(self, cost: LinearStepCost) -> None:
        """Serve them on the simulator."""
        self.simulated.append(_latencies(_simulated(self.core, self.requests, cost)))

    def compare(self) -> Comparison:
        """Put the simulations beside the runs."""
        return Comparison(
            setting=self.setting,
            ttft_s=median(run.ttft_s for run in self.real),
            tpot_s=median(run.tpot_s for run in self.real),
            simulated_ttft_s=median(run.ttft_s for run in self.simulated),
            simulated_tpot_s=median(run.tpot_s for run in self.simulated),
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
    """Run each setting for real `repeats` times, calibrating in between, and simulate each run with the costs around it."""
    clock = WallClock() if is_wall else CPUClock()
    with LLM(
        model, clock=clock, device="cpu", num_threads=1, max_model_len=CONTEXT, num_kv_blocks=1024,
        enable_prefix_cache=False,
    ) as llm:  # fmt: skip
        seats = max(setting.max_num_seqs for setting in settings)
        config = replace(llm.resolved.scheduler, max_num_seqs=seats, max_batched_tokens=CONTEXT)
        calibrating = core_with(llm, config)
        say(f"{model}: first calibration")
        timed_steps(calibrating)
        before = timed_steps(calibrating, seed=1)
        all_runs = [_prepare(llm, setting, fit_cost(before).cost, num_requests) for setting in settings]
        steps = [*before]
        for repeat in range(repeats):
            for runs in all_runs:
                say(f"{model}: {runs.setting.name}, {repeat + 1} of {repeats}")
                runs.run()
                after = timed_steps(calibrating, seed=len(steps))
                runs.simulate(fit_cost(before + after).cost)
                steps += after
                before = after
    return Fidelity([runs.compare() for runs in all_runs], fit_cost(steps), num_requests)


def median_error(errors: Iterable[float]) -> float:
    """Of their absolute values."""
    return median(map(abs, errors))


def _prepare(llm: LLM, setting: Setting, cost: LinearStepCost, num_requests: int) -> _Runs:
    """Find the setting's capacity by simulation, and draw requests at its share of that."""
    config = replace(
        llm.resolved.scheduler,
        policy=setting.policy,
        max_num_seqs=setting.max_num_seqs,
        max_batched_tokens=setting.max_batched_tokens,
    )
    core = core_with(llm, config)
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


def _latencies(report: SimulationReport) -> _Latencies:
    assert report.ttft_s is not None
    assert report.tpot_s is not None
    return _Latencies(report.ttft_s.p50, report.tpot_s.p50)
