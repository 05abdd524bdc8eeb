"""The simulator against the engine that it simulates: the same requests at the same times, on either clock.

A machine that is shared has slow seconds and fast ones. So the cost model that simulates a run is calibrated during that
run: between its steps, while its clock stands, a second engine on the same weights takes some of the calibration's own
requests (`simulator.calibrate_engine`). Both see the same machine, and nothing is fitted to the steps that are compared.

    run          32 steps ········ 32 steps ········ 32 steps ···  ──▶ TTFT, TPOT            ◀─┐
    calibration           8 steps           8 steps                ──▶ cost                    │ compared
    simulation                                cost, the same requests ──▶ TTFT, TPOT         ◀─┘

All is timed in CPU time of one thread, and waiting for the next arrival is skipped (`CPUClock`): what other programs take of
a shared core would be in the measurement, and no simulator could know it.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, count, islice
from statistics import geometric_mean, median
from typing import NamedTuple

from infra_lab.clock import CPUClock
from infra_lab.engine.core import EngineCore
from infra_lab.engine.llm import LLM
from infra_lab.engine.shared_model import core_with
from infra_lab.scheduler.config import SchedulerConfig
from infra_lab.scheduler.policies import BatchingPolicy, StaticPolicy
from infra_lab.simulator.arrivals import PoissonArrivals
from infra_lab.simulator.calibrate import Calibration, TimedStep, fit_cost
from infra_lab.simulator.calibrate_engine import time_round, timed_steps
from infra_lab.simulator.cost import LinearStepCost
from infra_lab.simulator.lengths import published_lengths
from infra_lab.simulator.open_loop import VOCAB_SIZE, serve_open_loop
from infra_lab.simulator.replay import simulate
from infra_lab.simulator.report import SimulationReport
from infra_lab.simulator.traced_request import TracedRequest
from infra_lab.simulator.workloads import independent_requests

CONTEXT = 512
WORKLOAD = "sharegpt"
RUN_STEPS, CALIBRATION_STEPS = 32, 8
"""How many come in turn."""


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

    def config(self, of_model: SchedulerConfig) -> SchedulerConfig:
        """For the scheduler."""
        return replace(
            of_model,
            policy=self.policy,
            max_num_seqs=self.max_num_seqs,
            max_batched_tokens=self.max_batched_tokens,
        )


SETTINGS = (
    Setting("chunked-prefill", 4, 64, 0.5),
    Setting("chunked-prefill", 16, 128, 0.8),
    Setting("continuous", 8, CONTEXT + 8, 0.5),
    Setting("prefill-first", 16, CONTEXT + 16, 0.8),
    Setting(StaticPolicy(batch_size=8), 8, CONTEXT, 0.5),
    Setting("sjf", 8, 256, 0.8),
)


class Latencies(NamedTuple):
    """Of one run: medians over its requests."""

    ttft_s: float
    tpot_s: float


@dataclass(slots=True)
class Comparison:
    """One setting's runs, each with its simulation.

    Means over repeats are geometric: the ratio of two is the mean of what each repeat says by itself.
    """

    setting: Setting
    real: list[Latencies] = field(default_factory=list)
    simulated: list[Latencies] = field(default_factory=list)

    @property
    def mean(self) -> Latencies:
        """Of the runs."""
        return _mean(self.real)

    @property
    def simulated_mean(self) -> Latencies:
        """Of their simulations."""
        return _mean(self.simulated)

    @property
    def errors(self) -> tuple[float, float]:
        """Of TTFT and TPOT: (simulated - real) / real of the means."""
        ttft, tpot = (simulated / real - 1 for simulated, real in zip(self.simulated_mean, self.mean, strict=True))
        return ttft, tpot


class Fidelity(NamedTuple):
    """All settings on one model."""

    comparisons: list[Comparison]
    calibration: Calibration
    """Fitted to the steps of all calibrations."""
    num_requests: int


def measure_fidelity(
    model: str,
    settings: Sequence[Setting] = SETTINGS,
    *,
    num_requests: int,
    repeats: int,
    say: Callable[[str], None] = lambda line: None,
) -> Fidelity:
    """Run each setting `repeats` times, each time with other requests, and simulate each run."""
    clock = CPUClock()
    with LLM(
        model, clock=clock, device="cpu", num_threads=1, max_model_len=CONTEXT, num_kv_blocks=1024,
        enable_prefix_cache=False,
    ) as llm:  # fmt: skip
        seats = max(setting.max_num_seqs for setting in settings)
        config = replace(llm.resolved.scheduler, max_num_seqs=seats, max_batched_tokens=CONTEXT)
        calibrating, rng = core_with(llm, config, CPUClock(), own_memory=True), random.Random(0)
        say(f"{model}: first calibration")
        timed_steps(calibrating)
        cost = fit_cost(timed_steps(calibrating, seed=1)).cost
        rounds = chain.from_iterable(time_round(calibrating, rng) for _ in count())
        all_steps = list[TimedStep]()
        comparisons = [Comparison(setting) for setting in settings]
        for repeat in range(repeats):
            for comparison in comparisons:
                setting = comparison.setting
                say(f"{model}: {setting.name}, {repeat + 1} of {repeats}")
                core = core_with(llm, setting.config(llm.resolved.scheduler))
                requests = _requests(core, setting, cost, num_requests, seed=repeat)
                with_run = _CalibrationDuringRun(rounds, clock)
                run = serve_open_loop(core, requests, progress=with_run.after_step)
                cost = fit_cost(with_run.steps).cost
                comparison.real.append(_latencies(run.report))
                comparison.simulated.append(_latencies(_simulated(core, requests, cost)))
                all_steps += with_run.steps
    return Fidelity(comparisons, fit_cost(all_steps), num_requests)


def median_error(errors: Iterable[float]) -> float:
    """Of their absolute values."""
    return median(map(abs, errors))


class _CalibrationDuringRun:
    """Takes steps of a calibration, now and then, while the clock of the run stands."""

    def __init__(self, source: Iterator[TimedStep], clock: CPUClock) -> None:
        self.steps: list[TimedStep] = []
        self._source, self._clock, self._num_steps = source, clock, 0

    def after_step(self, num_done: int) -> None:
        """Called after each step of the run."""
        if self._num_steps % RUN_STEPS == 0:
            with self._clock.stopped():
                next(
                    self._source
                )  # the processor's caches hold the run's data; that is so for one step of the run in 32
                self.steps += islice(self._source, CALIBRATION_STEPS)
        self._num_steps += 1


def _requests(
    core: EngineCore, setting: Setting, cost: LinearStepCost, num_requests: int, seed: int
) -> list[TracedRequest]:
    """Find the setting's capacity by simulation, and draw requests at its share of that."""
    shapes = published_lengths(WORKLOAD, max_total=CONTEXT).draw(num_requests, seed=2 * seed + 1)
    at_once = _simulated(core, independent_requests([0.0] * num_requests, shapes), cost)
    arrivals = PoissonArrivals(rate_per_s=setting.load * at_once.requests_per_s)
    return independent_requests(arrivals.times_s(num_requests=num_requests, seed=2 * seed), shapes)


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


def _latencies(report: SimulationReport) -> Latencies:
    assert report.ttft_s is not None
    assert report.tpot_s is not None
    return Latencies(report.ttft_s.p50, report.tpot_s.p50)


def _mean(runs: list[Latencies]) -> Latencies:
    return Latencies(*map(geometric_mean, zip(*runs, strict=True)))
