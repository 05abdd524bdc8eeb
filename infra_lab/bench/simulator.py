"""The simulator: how fast it is, how far its two levels agree, and how close it comes to the engine that it simulates."""

from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from time import process_time
from typing import NamedTuple

import torch

from infra_lab.bench.fidelity import CONTEXT, SETTINGS, WORKLOAD, Comparison, Fidelity, measure_fidelity, median_error
from infra_lab.bench.report import BenchReport, BenchRow, at_least, at_most
from infra_lab.data import data_path
from infra_lab.models.fetch import cached_model
from infra_lab.scheduler.config import SchedulerConfig
from infra_lab.simulator.arrivals import PoissonArrivals
from infra_lab.simulator.config_file import read_simulation
from infra_lab.simulator.cost import LinearStepCost
from infra_lab.simulator.lengths import published_lengths
from infra_lab.simulator.replay import simulate
from infra_lab.simulator.report import SimulationReport
from infra_lab.simulator.request_level import simulate_cluster
from infra_lab.simulator.workloads import independent_requests

ASKED_REQUEST_STEPS = 200_000
NUM_REPLICAS = 1_000
NUM_REQUESTS = 1_000_000
ASKED_CLUSTER_S = 120.0
ASKED_ERROR = 9.0
"""Percent; Vidur (Agrawal 2024) claims less for its own predictions of end-to-end latency."""
RATE_PER_S = 1.5
"""Requests a second and replica: some five of them decode at once."""
CLUSTER_CONFIG = SchedulerConfig(max_model_len=8192, max_num_seqs=64, max_batched_tokens=512)
CLUSTER_COST = LinearStepCost(fixed_s=0.008, per_token_s=2e-5, per_context_token_s=4e-8)
"""About what an 8B model takes on one H100."""
CLUSTER_WORKLOAD = "sharegpt"
KV_TOKENS = 400_000
LABELS = ("TTFT", "TPOT")


def run(*, quick: bool, say: Callable[[str], None]) -> BenchReport:
    """Measure all rows. Times of the simulator itself are of the CPU, so that other programs count for less."""
    say("step level")
    rows = [_step_level(data_path("workloads/chat_sessions.yaml"), repeats=2 if quick else 7)]
    cluster_requests = NUM_REQUESTS // 50 if quick else NUM_REQUESTS
    say(f"request level: {cluster_requests:,} requests on {NUM_REPLICAS:,} replicas")
    rows.append(_cluster(cluster_requests))
    say("request level beside step level")
    rows += level_rows(300 if quick else 3_000)
    for model in _models(quick):
        if quick:
            fidelity = measure_fidelity(model, SETTINGS[1:3], num_requests=6, repeats=1, say=say)
        else:
            # A step of SmolLM2 takes some thirty times as long.
            num_requests, repeats = (32, 5) if model == "tiny" else (6, 2)
            fidelity = measure_fidelity(model, num_requests=num_requests, repeats=repeats, say=say)
        rows += fidelity_rows(model, fidelity)
    return BenchReport("simulator", rows, versions={"torch": torch.__version__})


def _models(quick: bool) -> list[str]:
    has_smollm2 = cached_model("smollm2-135m") is not None
    return ["tiny", "smollm2-135m"] if has_smollm2 and not quick else ["tiny"]


def _step_level(path: Path, repeats: int) -> BenchRow:
    simulation = read_simulation(path)
    speeds = []
    for _ in range(repeats):
        begin = process_time()
        report = simulation.run()
        speeds.append(report.request_steps / (process_time() - begin))
    return at_least(
        "step level",
        median(speeds),
        "request-steps/s",
        "asked for",
        ASKED_REQUEST_STEPS,
        1.0,
        f"{path.name}: {report.num_steps:,} steps of {report.request_steps / report.num_steps:.1f} requests on average; "
        "of CPU time on one core",
    )


def _cluster(num_requests: int) -> BenchRow:
    times_s = PoissonArrivals(rate_per_s=RATE_PER_S * NUM_REPLICAS).times_s(num_requests=num_requests, seed=0)
    shapes = published_lengths(CLUSTER_WORKLOAD, max_total=CLUSTER_CONFIG.max_model_len).draw(num_requests, seed=1)
    begin = process_time()
    report = simulate_cluster(
        times_s, shapes, CLUSTER_CONFIG, CLUSTER_COST, num_replicas=NUM_REPLICAS, kv_tokens=KV_TOKENS
    )
    return at_most(
        f"{num_requests:,} requests on {NUM_REPLICAS:,}",
        process_time() - begin,
        "s",
        f"asked for {NUM_REQUESTS:,}, in proportion",
        ASKED_CLUSTER_S * num_requests / NUM_REQUESTS,
        1.0,
        f"request level, Poisson, {CLUSTER_WORKLOAD} lengths, {report.duration_s:,.0f} s simulated, "
        f"{report.request_steps:,} request-steps; of CPU time on one core",
    )


class _Levels(NamedTuple):
    steps: SimulationReport
    requests: SimulationReport


def level_rows(num_requests: int) -> list[BenchRow]:
    """Latencies of both levels: with enough KV memory, where they must agree, and with so little that some are preempted."""
    rows = []
    for name, kv_tokens in (("ample KV", KV_TOKENS), ("short KV", 16_384)):
        both = _both_levels(num_requests, kv_tokens)
        note = f"{num_requests} requests of {CLUSTER_WORKLOAD} lengths, {both.steps.num_preemptions} preemptions"
        for label, one, other in _pairs(both):
            rows.append(
                at_most(f"{label}, {name}", 1e3 * other, "ms", "step level", 1e3 * one, None, f"request level, {note}")
            )
    return rows


def _both_levels(num_requests: int, kv_tokens: int) -> _Levels:
    times_s = PoissonArrivals(rate_per_s=6.0).times_s(num_requests=num_requests, seed=0)
    shapes = published_lengths(CLUSTER_WORKLOAD, max_total=4096).draw(num_requests, seed=1)
    steps = simulate(
        independent_requests(times_s, shapes),
        CLUSTER_CONFIG,
        CLUSTER_COST,
        num_kv_blocks=kv_tokens // 16,
        enable_prefix_cache=False,
    )
    return _Levels(steps, simulate_cluster(times_s, shapes, CLUSTER_CONFIG, CLUSTER_COST, kv_tokens=kv_tokens))


def _pairs(both: _Levels) -> Iterator[tuple[str, float, float]]:
    for label, one, other in (
        ("TTFT", both.steps.ttft_s, both.requests.ttft_s),
        ("TPOT", both.steps.tpot_s, both.requests.tpot_s),
    ):
        assert one is not None
        assert other is not None
        yield from ((f"{label} {name}", getattr(one, name), getattr(other, name)) for name in ("p50", "p99"))


def fidelity_rows(model: str, fidelity: Fidelity) -> list[BenchRow]:
    """Simulated medians beside real ones, a row for each setting and latency; and the median errors."""
    comparisons = fidelity.comparisons
    note = f"{model}, {fidelity.num_requests} requests of {WORKLOAD} lengths cut to {CONTEXT}, Poisson"
    rows = []
    for label, errors in zip(LABELS, zip(*(c.errors for c in comparisons), strict=True), strict=True):
        rows.append(
            at_most(
                f"{label} error, {model}",
                100 * median_error(errors),
                "%",
                "Vidur's claim",
                ASKED_ERROR,
                1.0,
                f"median of {len(comparisons)} settings; costs fitted to {fidelity.calibration.num_steps} other steps in all, "
                f"median error {fidelity.calibration.median_error:.1%} of one",
            )
        )
    for comparison in comparisons:
        rows += _setting_rows(comparison, note)
    return rows


def _setting_rows(comparison: Comparison, note: str) -> Iterator[BenchRow]:
    for label, simulated, real in zip(LABELS, comparison.simulated_mean, comparison.mean, strict=True):
        yield at_most(
            f"  {label}: {comparison.setting.name}", 1e3 * simulated, "ms", "the engine", 1e3 * real, None, note
        )
