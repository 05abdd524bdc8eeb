"""Queues whose mean waiting times are known: Pollaczek-Khinchine (M/G/1, so M/M/1 and M/D/1) and Erlang C (M/M/c).

A request is a prompt and one token, a step is paid by the token, and a replica has one seat: so a service takes as long as the
prompt is, and the scheduler is a server. Simulated means scatter, and waits of neighbours resemble each other: the bounds are
four standard errors of the means of 25 batches.
"""

import math
import random

import numpy as np
import pytest

from infra_lab.scheduler.config import SchedulerConfig
from infra_lab.simulator.arrivals import PoissonArrivals
from infra_lab.simulator.cost import LinearStepCost
from infra_lab.simulator.replay import simulate
from infra_lab.simulator.report import SimulationReport
from infra_lab.simulator.request_level import simulate_cluster
from infra_lab.simulator.workload import RequestShape
from infra_lab.simulator.workloads import independent_requests

CONFIG = SchedulerConfig(max_model_len=100_000, max_num_seqs=1, max_batched_tokens=100_000)


def exponential(number: int, mean_tokens: int, seed: int) -> list[RequestShape]:
    """Geometric prompts: exponential but for the grid of whole tokens."""
    rng = random.Random(seed)
    return [RequestShape(math.ceil(rng.expovariate(1 / mean_tokens)), 1) for _ in range(number)]


def check_mean_wait(report: SimulationReport, per_token_s: float, expected_s: float) -> None:
    waits = np.array([r.last_token_s - r.arrival_s - r.prompt_tokens * per_token_s for r in report.served])
    assert waits.min() > -1e-6
    batches = waits[len(waits) % 25 :].reshape(25, -1).mean(axis=1)
    error = batches.std(ddof=1) / 5
    assert error < 0.12 * expected_s, "too few requests to tell"
    assert waits.mean() == pytest.approx(expected_s, abs=4 * error)


@pytest.mark.parametrize("kind", ["M/M/1", "M/D/1"])
def test_one_server_of_the_real_scheduler(kind: str) -> None:
    number, load = 20_000, 0.5
    times = PoissonArrivals(rate_per_s=load).times_s(num_requests=number, seed=11)
    shapes = exponential(number, 50, 12) if kind == "M/M/1" else [RequestShape(50, 1)] * number
    report = simulate(
        independent_requests(times, shapes), CONFIG, LinearStepCost(per_token_s=1 / 50), num_kv_blocks=200,
        enable_prefix_cache=False,
    )  # fmt: skip
    grid = 1 - math.exp(-1 / 50)  # of the geometric prompts: mean 1/grid, second moment (2 - grid)/grid²
    mean, square = (1 / grid / 50, (2 - grid) / grid**2 / 50**2) if kind == "M/M/1" else (1.0, 1.0)
    check_mean_wait(report, 1 / 50, load * square / (2 * (1 - load * mean)))
    assert report.busy_share == pytest.approx(load, rel=0.05)


@pytest.mark.parametrize("load", [0.5, 0.8])
@pytest.mark.parametrize("kind", ["M/M/1", "M/D/1"])
def test_one_server_of_the_request_level_model(kind: str, load: float) -> None:
    number = 60_000
    times = PoissonArrivals(rate_per_s=load).times_s(num_requests=number, seed=21)
    shapes = exponential(number, 1000, 22) if kind == "M/M/1" else [RequestShape(1000, 1)] * number
    report = simulate_cluster(times, shapes, CONFIG, LinearStepCost(per_token_s=0.001))
    check_mean_wait(report, 0.001, load * (2.0 if kind == "M/M/1" else 1.0) / (2 * (1 - load)))


def erlang_c(servers: int, offered: float) -> float:
    """Probability that all servers are busy when a request comes."""
    terms = [offered**k / math.factorial(k) for k in range(servers)]
    last = offered**servers / math.factorial(servers) * servers / (servers - offered)
    return last / (sum(terms) + last)


@pytest.mark.parametrize(("servers", "load"), [(2, 0.6), (4, 0.7), (12, 0.8)])
def test_many_servers_of_one_queue(servers: int, load: float) -> None:
    number, offered = 60_000, servers * load
    times = PoissonArrivals(rate_per_s=offered).times_s(num_requests=number, seed=31)
    report = simulate_cluster(
        times, exponential(number, 1000, 32), CONFIG, LinearStepCost(per_token_s=0.001), num_replicas=servers,
        routing="shared-queue",
    )  # fmt: skip
    check_mean_wait(report, 0.001, erlang_c(servers, offered) / (servers - offered))


def test_random_routing_makes_as_many_queues_as_there_are_servers() -> None:
    """A Poisson stream that is split by chance is as many Poisson streams."""
    times = PoissonArrivals(rate_per_s=8 * 0.6).times_s(num_requests=60_000, seed=41)
    shapes = exponential(60_000, 1000, 42)
    report = simulate_cluster(
        times, shapes, CONFIG, LinearStepCost(per_token_s=0.001), num_replicas=8, routing="random"
    )
    check_mean_wait(report, 0.001, 0.6 / (1 - 0.6))
