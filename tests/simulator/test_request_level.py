"""The request-level model against the step-level one, step for step where the two are meant to agree."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra_lab.errors import ConfigError
from infra_lab.scheduler.config import SchedulerConfig
from infra_lab.simulator.arrivals import GammaArrivals
from infra_lab.simulator.cost import LinearStepCost
from infra_lab.simulator.replay import simulate
from infra_lab.simulator.report import SimulationReport
from infra_lab.simulator.request_level import Routing, simulate_cluster
from infra_lab.simulator.workload import RequestShape, lognormal_shapes
from infra_lab.simulator.workloads import independent_requests

COST = LinearStepCost(fixed_s=0.01, per_token_s=0.001, per_context_token_s=0.0001)
CONFIG = SchedulerConfig(max_model_len=256, max_num_seqs=8, max_batched_tokens=64)


def times_of(report: SimulationReport) -> list[tuple[float, float]]:
    return [(request.first_token_s, request.last_token_s) for request in report.served]


@settings(max_examples=60, deadline=None)
@given(
    number=st.integers(1, 40),
    rate=st.floats(0.2, 40.0),
    seed=st.integers(0, 10_000),
    max_num_seqs=st.integers(1, 9),
    spare=st.integers(0, 60),
    chunk=st.none() | st.integers(1, 9),
    per_context=st.sampled_from([0.0, 0.0001, 0.01]),
    per_pair=st.sampled_from([0.0, 0.0003]),
)
def test_with_enough_memory_both_give_the_same_times(
    number: int,
    rate: float,
    seed: int,
    max_num_seqs: int,
    spare: int,
    chunk: int | None,
    per_context: float,
    per_pair: float,
) -> None:
    config = SchedulerConfig(
        max_model_len=256, max_num_seqs=max_num_seqs, max_batched_tokens=max_num_seqs + spare,
        max_prefill_chunk=chunk and min(chunk, max_num_seqs + spare),
    )  # fmt: skip
    cost = LinearStepCost(
        fixed_s=0.01, per_token_s=0.001, per_context_token_s=per_context, per_request_s=0.002, per_pair_s=per_pair
    )
    times = GammaArrivals(rate_per_s=rate).times_s(num_requests=number, seed=seed)
    shapes = lognormal_shapes(number, median_prompt=30, median_output=12, max_total=256, seed=seed)
    steps = simulate(independent_requests(times, shapes), config, cost, num_kv_blocks=1000, enable_prefix_cache=False)
    jumps = simulate_cluster(times, shapes, config, cost)
    assert np.array(times_of(jumps)) == pytest.approx(np.array(times_of(steps)), rel=1e-9)
    assert (jumps.num_steps, jumps.request_steps) == (steps.num_steps, steps.request_steps)
    assert jumps.busy_share == pytest.approx(steps.busy_share)


@pytest.mark.parametrize("routing", ["round-robin", "random", "least-loaded", "shared-queue"])
def test_every_request_is_served_once_by_a_replica_that_has_room(routing: Routing) -> None:
    shapes = lognormal_shapes(2_000, median_prompt=30, median_output=12, max_total=256, seed=3)
    times = GammaArrivals(rate_per_s=60.0).times_s(num_requests=2_000, seed=3)
    report = simulate_cluster(times, shapes, CONFIG, COST, num_replicas=5, routing=routing, kv_tokens=600)
    assert [(r.index, r.output_tokens) for r in report.served] == [(i, s.output_tokens) for i, s in enumerate(shapes)]
    for request, arrival_s in zip(report.served, times, strict=True):
        assert arrival_s < request.first_token_s <= request.last_token_s
    busy_s = report.busy_share * 5 * report.duration_s
    tokens = sum(shape.total_tokens - 1 for shape in shapes)
    read_alone = sum(
        sum(range(s.prompt_tokens, s.total_tokens)) for s in shapes
    )  # by prompts of one chunk, and decodes
    work_s = 0.01 * report.num_steps + 0.001 * tokens + 0.0001 * read_alone
    assert busy_s == pytest.approx(work_s, rel=0.02)  # prompts in several chunks read a little more
    assert busy_s >= work_s - 1e-6


def test_round_robin_is_each_replica_by_itself() -> None:
    shapes = lognormal_shapes(300, median_prompt=30, median_output=12, max_total=256, seed=4)
    times = GammaArrivals(rate_per_s=20.0).times_s(num_requests=300, seed=4)
    report = simulate_cluster(times, shapes, CONFIG, COST, num_replicas=3, routing="round-robin")
    for replica in range(3):
        alone = simulate_cluster(times[replica::3], shapes[replica::3], CONFIG, COST)
        assert times_of(report)[replica::3] == times_of(alone)


def test_a_short_memory_makes_the_next_one_wait_and_nobody_overtake() -> None:
    shapes = [RequestShape(50, 50), RequestShape(90, 10), RequestShape(1, 1)]
    report = simulate_cluster([0.0, 0.1, 0.2], shapes, CONFIG, COST, kv_tokens=150)
    first, second, third = report.served
    assert second.first_token_s > first.last_token_s
    assert third.first_token_s > first.last_token_s


def test_what_never_fits_is_refused_and_what_is_too_long_is_cut() -> None:
    report = simulate_cluster(
        [0.0, 0.0, 0.0],
        [RequestShape(256, 1), RequestShape(250, 99), RequestShape(120, 100)],
        CONFIG,
        COST,
        kv_tokens=256,
    )
    assert report.rejected == {"does not fit": 1}
    assert [(r.index, r.output_tokens) for r in report.served] == [(1, 6), (2, 100)]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"num_replicas": 0}, "num_replicas"),
        ({"routing": "nearest"}, "routing"),
        ({"kv_tokens": 0}, "kv_tokens"),
        ({"times_s": [1.0, 0.5]}, "ascending"),
        ({"times_s": [-1.0, 0.5]}, "ascending"),
        ({"times_s": [0.0, float("nan")]}, "ascending"),
        ({"times_s": [0.0]}, "1 times and 2 shapes"),
        ({"config": SchedulerConfig(policy="static", max_model_len=64, max_num_seqs=2)}, "static"),
        ({"config": SchedulerConfig(max_waiting=1, max_model_len=64, max_num_seqs=2)}, "max_waiting"),
    ],
)
def test_no_cluster(change: dict[str, object], word: str) -> None:
    good: dict[str, object] = {
        "times_s": [0.0, 0.5],
        "shapes": [RequestShape(1, 1)] * 2,
        "config": CONFIG,
        "cost": COST,
    }
    with pytest.raises(ConfigError, match=word):
        simulate_cluster(**{**good, **change})  # type: ignore[arg-type]
