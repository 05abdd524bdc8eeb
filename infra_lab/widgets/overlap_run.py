"""Steps of the real scheduler, block manager and text output before a device that takes a given time: who waits for whom."""

from collections.abc import Callable
from itertools import pairwise
from statistics import median
from typing import NamedTuple

from infra_lab.clock import Clock, CPUClock
from infra_lab.data import data_path
from infra_lab.engine.recorder import StepRecord
from infra_lab.models.tokenizer import load_tokenizer
from infra_lab.sampling_params import SamplingParams
from infra_lab.scheduler.config import SchedulerConfig
from infra_lab.scheduler.plan import StepPlan
from infra_lab.simulator.executor import simulated_engine
from infra_lab.simulator.replay import without_garbage_collection

NUM_STEPS, NUM_FIRST = 32, 4
"""Decode steps of a run, and how many at its beginning are left out: the prompts', and those that warm up."""
PLAN, NOTE, HAND_OUT = "plans", "notes tokens, launches", "hands out text"


class Piece(NamedTuple):
    """What somebody does from when to when, in seconds of the run's clock."""

    what: str
    start_s: float
    end_s: float


class OverlapRun(NamedTuple):
    """Decode steps of one batch, in one of the two ways."""

    device_s: float
    """That the device takes for a step."""
    host: list[Piece]
    device: list[Piece]

    @property
    def step_s(self) -> float:
        """From one launch to the next, at the median."""
        return median(later.start_s - piece.start_s for piece, later in pairwise(self.device))

    @property
    def busy_share(self) -> float:
        """Of the device."""
        return self.device_s / self.step_s

    def host_s(self, what: str) -> float:
        """What the host takes for this a step, at the median."""
        return median(piece.end_s - piece.start_s for piece in self.host if piece.what == what)


class _ConstantCost:
    """Takes the same time for each step, and writes down when it was asked: when the device was given the step."""

    def __init__(self, device_s: float, now: Callable[[], float]) -> None:
        self._device_s, self._now = device_s, now
        self.launched_s: list[float] = []

    def step_s(self, plan: StepPlan) -> float:
        self.launched_s.append(self._now())
        return self._device_s


def run_steps(num_requests: int, device_s: float, *, overlap: bool, clock: Clock | None = None) -> OverlapRun:
    """Decode with so many requests, each watched for a stop string as a server's are.

    On the clock that is there without one, the host's work takes the CPU time that it takes, and the device's time goes by
    without waiting for it; the two overlap as they would.
    """
    clock = clock or CPUClock()
    cost = _ConstantCost(device_s, clock.now)
    config = SchedulerConfig(max_model_len=256, max_num_seqs=num_requests, max_batched_tokens=16 * num_requests)
    core = simulated_engine(
        config,
        load_tokenizer(data_path("tiny")),
        vocab_size=272,
        num_kv_blocks=8 * num_requests,
        cost=cost,
        clock=clock,
        overlap=overlap,
    )
    params = SamplingParams(max_tokens=NUM_STEPS, temperature=0.0, ignore_eos=True, stop=["\0"])
    for number in range(num_requests):
        core.add([32 + number % 96] * 16, params)
    with without_garbage_collection():
        while core.has_work:
            core.step()
    steps = core.recorder.steps[NUM_FIRST:]
    host = [piece for step in steps for piece in _pieces(step)]
    device = [Piece("computes", start_s, start_s + device_s) for start_s in cost.launched_s[NUM_FIRST:]]
    return OverlapRun(device_s, host, device)


def _pieces(step: StepRecord) -> list[Piece]:
    """The host's part of a step; it waits for the device between the first two."""
    timings_s, end_s = step.timings_s, step.start_s + step.duration_s
    launched_s = end_s - timings_s["output"]
    noting_s = timings_s["update"] + timings_s.get("prepare", 0.0)
    return [
        Piece(PLAN, step.start_s, step.start_s + timings_s["schedule"]),
        Piece(NOTE, launched_s - noting_s, launched_s),
        Piece(HAND_OUT, launched_s, end_s),
    ]
