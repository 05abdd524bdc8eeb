"""The replay against the engine's own step loop, a queue's recursion, and what must hold for every policy."""

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra_lab.clock import VirtualClock
from infra_lab.data import data_path
from infra_lab.errors import ConfigError
from infra_lab.models.tokenizer import load_tokenizer
from infra_lab.sampling_params import SamplingParams
from infra_lab.scheduler.config import SchedulerConfig
from infra_lab.scheduler.plan import StepPlan
from infra_lab.scheduler.policies import POLICIES
from infra_lab.simulator.cost import LinearStepCost
from infra_lab.simulator.executor import simulated_engine
from infra_lab.simulator.replay import simulate
from infra_lab.simulator.report import ServiceLevel, SimulationReport, Spread
from infra_lab.simulator.traced_request import Span, TracedRequest

COST = LinearStepCost(fixed_s=0.01, per_token_s=0.001, per_context_token_s=0.0001)


def drawn(number: int, seed: int, *, rate_per_s: float = 8.0) -> list[TracedRequest]:
    rng, now_s, requests = random.Random(seed), 0.0, []
    for index in range(number):
        now_s += rng.expovariate(rate_per_s)
        spans = (Span(1000 + rng.randrange(3), 32), Span(index, rng.randint(1, 60)))
        requests.append(TracedRequest(arrival_s=now_s, spans=spans, output_tokens=rng.randint(1, 12)))
    return requests


def test_the_times_are_those_of_the_engine() -> None:
    config = SchedulerConfig(max_model_len=256, max_num_seqs=6, max_batched_tokens=48)
    requests = drawn(40, seed=5)
    report = simulate(requests, config, COST, num_kv_blocks=14, vocab_size=250)
    clock = VirtualClock()
    core = simulated_engine(
        config, load_tokenizer(data_path("tiny")), vocab_size=272, num_kv_blocks=14, cost=COST, clock=clock,
        next_token=lambda request: 1,
    )  # fmt: skip
    token_times: dict[str, list[float]] = {}
    cached: dict[str, int] = {}
    waiting = list(enumerate(requests))
    while waiting or core.has_work:
        if not core.has_work and waiting[0][1].arrival_s > clock.now():
            clock.sleep(waiting[0][1].arrival_s - clock.now())
        while waiting and waiting[0][1].arrival_s <= clock.now():
            index, request = waiting.pop(0)
            params = SamplingParams(max_tokens=request.output_tokens, temperature=0.0, ignore_eos=True)
            core.add(request.prompt_token_ids(250), params, request_id=str(index), arrival_s=request.arrival_s)
        for delta in core.step():
            token_times.setdefault(delta.request_id, []).append(clock.now())
            cached[delta.request_id] = delta.metrics.num_cached_tokens
    assert sum(step.preempted != () for step in core.recorder.steps) > 0, "the pool was meant to be too small"
    assert [request.token_times_s for request in report.served] == [
        pytest.approx(token_times[str(index)]) for index in range(40)
    ]
    unharmed = [request for request in report.served if not request.num_preemptions]
    assert [request.cached_tokens for request in unharmed] == [cached[str(r.index)] for r in unharmed]
    assert report.num_steps == len(core.recorder.steps)
    assert report.num_preemptions == sum(len(step.preempted) for step in core.recorder.steps)
    assert report.kv_use_max == 1.0


def test_one_seat_is_a_queue_of_lindleys_recursion() -> None:
    """Waiting of the next = max(0, waiting of this + its service - the gap between them)."""
    rng, now_s, requests = random.Random(3), 0.0, []
    for index in range(500):
        now_s += rng.expovariate(1.0)
        requests.append(
            TracedRequest(arrival_s=now_s, spans=(Span(index, rng.randint(1, 90)),), output_tokens=rng.randint(1, 3))
        )
    config = SchedulerConfig(max_model_len=128, max_num_seqs=1, max_batched_tokens=128)
    report = simulate(requests, config, LinearStepCost(per_token_s=0.012), num_kv_blocks=8, enable_prefix_cache=False)
    service_s = [0.012 * (r.prompt_tokens + r.output_tokens - 1) for r in requests]
    wait_s = [0.0]
    for (before, after), service in zip(pairwise(requests), service_s, strict=False):
        wait_s.append(max(0.0, wait_s[-1] + service - (after.arrival_s - before.arrival_s)))
    ends = [r.arrival_s + wait + service for r, wait, service in zip(requests, wait_s, service_s, strict=True)]
    assert [request.last_token_s for request in report.served] == pytest.approx(ends)
    assert report.busy_share * report.duration_s == pytest.approx(sum(service_s))


@settings(max_examples=40, deadline=None)
@given(
    policy=st.sampled_from(sorted(POLICIES)),
    number=st.integers(1, 25),
    num_kv_blocks=st.integers(8, 40),
    max_num_seqs=st.integers(1, 6),
    prefix_cache=st.booleans(),
    seed=st.integers(0, 1_000),
)
def test_what_holds_under_every_policy(
    policy: str, number: int, num_kv_blocks: int, max_num_seqs: int, prefix_cache: bool, seed: int
) -> None:
    requests = drawn(number, seed)
    config = SchedulerConfig(policy=policy, max_model_len=128, max_num_seqs=max_num_seqs, max_batched_tokens=128)
    seen = _Watched(COST)
    report = simulate(requests, config, seen, num_kv_blocks=num_kv_blocks, enable_prefix_cache=prefix_cache)
    assert [request.index for request in report.served] == list(range(number)), "each once, and nobody twice"
    for request, served in zip(requests, report.served, strict=True):
        assert served.output_tokens == request.output_tokens == len(served.token_times_s)
        assert served.prompt_tokens == request.prompt_tokens
        times = [request.arrival_s, *served.token_times_s]
        assert all(earlier < later for earlier, later in pairwise(times)), "time only goes on"
    computed = sum(seen.tokens)
    needed = sum(r.prompt_tokens + r.output_tokens - 1 for r in requests) - report.cached_tokens
    assert computed == needed if not report.num_preemptions else computed >= needed, "work is conserved"
    assert report.busy_share * report.duration_s == pytest.approx(sum(seen.seconds))
    assert report.num_steps == len(seen.seconds)
    assert report.kv_use_mean is not None
    assert report.kv_use_max is not None
    assert 0 < report.kv_use_mean <= report.kv_use_max + 1e-9
    assert report.kv_use_max <= 1


class _Watched:
    """A cost model that writes down what it is asked."""

    def __init__(self, cost: LinearStepCost) -> None:
        self.cost = cost
        self.tokens: list[int] = []
        self.seconds: list[float] = []

    def step_s(self, plan: StepPlan) -> float:
        self.tokens.append(plan.num_tokens)
        self.seconds.append(self.cost.step_s(plan))
        return self.seconds[-1]


def test_nobody_idles_while_someone_waits() -> None:
    """With room for all, the machine rests only when all that came has left: gaps between busy periods start at an end."""
    requests = drawn(60, seed=9, rate_per_s=2.0)
    config = SchedulerConfig(max_model_len=128, max_num_seqs=64, max_batched_tokens=128)
    report = simulate(requests, config, COST, num_kv_blocks=1000)
    idle_s, end_s = 0.0, 0.0
    for served in report.served:
        idle_s += max(0.0, served.arrival_s - end_s) if served.arrival_s > end_s else 0.0
        end_s = max(end_s, served.last_token_s)
    assert idle_s > 0
    assert report.duration_s - report.busy_share * report.duration_s == pytest.approx(idle_s)


def test_goodput_counts_those_within_every_limit() -> None:
    requests = [
        TracedRequest(arrival_s=0.0, spans=(Span(0, 10),), output_tokens=1),  # 0.1 s
        TracedRequest(arrival_s=10.0, spans=(Span(1, 60),), output_tokens=3),  # 0.6 s, then 0.01 s a token
        TracedRequest(arrival_s=20.0, spans=(Span(2, 200),), output_tokens=1),  # does not fit
    ]
    config = SchedulerConfig(max_model_len=128, max_num_seqs=1, max_batched_tokens=128)

    def share(**limits: float) -> float | None:
        cost, slo = LinearStepCost(per_token_s=0.01), ServiceLevel(**limits)
        report = simulate(requests, config, cost, num_kv_blocks=8, slo=slo)
        assert report.rejected == {"does not fit": 1}
        return report.good_share

    assert share(ttft_s=1.0) == pytest.approx(2 / 3)
    assert share(ttft_s=0.5) == pytest.approx(1 / 3)
    assert share(ttft_s=1.0, tpot_s=0.005) == pytest.approx(1 / 3)
    assert share(ttft_s=1.0, tpot_s=0.011, e2e_s=0.615) == pytest.approx(1 / 3)
    assert share(tpot_s=0.011, e2e_s=0.625) == pytest.approx(2 / 3)


def test_turns_after_a_refused_one_never_come() -> None:
    requests = [
        TracedRequest(arrival_s=0.0, spans=(Span(0, 500),), output_tokens=1),
        TracedRequest(arrival_s=1.0, spans=(Span(0, 10),), output_tokens=1, follows=0),
        TracedRequest(arrival_s=2.0, spans=(Span(0, 10),), output_tokens=1),
    ]
    config = SchedulerConfig(max_model_len=128, max_num_seqs=1, max_batched_tokens=128)
    report = simulate(requests, config, COST, num_kv_blocks=8)
    assert (report.num_served, report.rejected, report.num_abandoned) == (1, {"does not fit": 1}, 1)


def test_a_full_queue_refuses() -> None:
    requests = [TracedRequest(arrival_s=0.0, spans=(Span(i, 10),), output_tokens=5) for i in range(5)]
    config = SchedulerConfig(max_model_len=128, max_num_seqs=1, max_batched_tokens=128, max_waiting=3)
    report = simulate(requests, config, COST, num_kv_blocks=8)
    assert (report.num_served, report.rejected) == (3, {"queue full": 2})


def test_a_batch_that_is_not_full_waits_and_no_longer() -> None:
    """Two requests, 3 ms apart; dynamic batching waits 5 ms for the second, and then both end together."""
    requests = [TracedRequest(arrival_s=0.003 * i, spans=(Span(i, 10),), output_tokens=2) for i in range(2)]
    config = SchedulerConfig(policy="dynamic", max_model_len=128, max_num_seqs=8, max_batched_tokens=128)
    report = simulate(requests, config, LinearStepCost(fixed_s=0.1), num_kv_blocks=8)
    assert [r.first_token_s for r in report.served] == pytest.approx([0.105, 0.105])


def test_percentiles_and_progress() -> None:
    import numpy as np

    assert Spread.of(np.array([])) is None
    assert Spread.of(np.arange(101.0)) == (50.0, 50.0, 90.0, 99.0, 100.0)
    told: list[tuple[int, int]] = []
    report: SimulationReport = simulate(
        drawn(30, seed=1),
        SchedulerConfig(max_model_len=128, max_num_seqs=4, max_batched_tokens=64),
        COST,
        num_kv_blocks=50,
        progress=lambda done, total: told.append((done, total)),
    )
    assert told == [(30, 30)]
    assert report.to_json()["ttft_s"]["p50"] == report.ttft_s.p50  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("requests", "word"),
    [
        ([], "no request"),
        ([TracedRequest(arrival_s=0.0, spans=(Span(0, 1),), output_tokens=1, follows=0)], "follows request 0"),
    ],
)
def test_no_workload(requests: list[TracedRequest], word: str) -> None:
    config = SchedulerConfig(max_model_len=128, max_num_seqs=1, max_batched_tokens=128)
    with pytest.raises(ConfigError, match=word):
        simulate(requests, config, COST, num_kv_blocks=8)
