"""A real engine under an open loop on a virtual clock is the replay, request for request; and what it refuses."""

import random
from contextlib import suppress
from dataclasses import replace

import pytest

from infra_lab.clock import ComputeClock, CPUClock, VirtualClock
from infra_lab.data import data_path
from infra_lab.engine.llm import LLM
from infra_lab.engine.shared_model import core_with
from infra_lab.errors import ConfigError
from infra_lab.models.tokenizer import load_tokenizer
from infra_lab.scheduler.config import SchedulerConfig
from infra_lab.simulator.cost import LinearStepCost
from infra_lab.simulator.executor import simulated_engine
from infra_lab.simulator.open_loop import VOCAB_SIZE, serve_open_loop
from infra_lab.simulator.replay import simulate
from infra_lab.simulator.report import ServiceLevel
from infra_lab.simulator.traced_request import Span, TracedRequest

COST = LinearStepCost(fixed_s=0.01, per_token_s=0.001, per_context_token_s=0.0001)


def drawn(number: int) -> list[TracedRequest]:
    rng, now_s, requests = random.Random(4), 0.0, []
    for index in range(number):
        now_s += rng.expovariate(8.0)
        spans = (Span(900 + rng.randrange(2), 32), Span(index, rng.randint(1, 60)))
        requests.append(TracedRequest(arrival_s=now_s, spans=spans, output_tokens=rng.randint(1, 12)))
    return requests


@pytest.mark.parametrize("policy", ["chunked-prefill", "dynamic"])
def test_it_is_the_replay(policy: str) -> None:
    config = SchedulerConfig(policy=policy, max_model_len=128, max_num_seqs=6, max_batched_tokens=128)
    requests = [*drawn(40), TracedRequest(arrival_s=1.0, spans=(Span(77, 200),), output_tokens=1)]
    clock, slo = VirtualClock(7.5), ServiceLevel(ttft_s=0.5)
    core = simulated_engine(
        config, load_tokenizer(data_path("tiny")), vocab_size=272, num_kv_blocks=14, cost=COST, clock=clock,
        next_token=lambda request: 1,
    )  # fmt: skip
    found = serve_open_loop(core, requests, slo=slo).report
    expected = simulate(requests, config, COST, num_kv_blocks=14, vocab_size=VOCAB_SIZE, slo=slo)
    assert found.rejected == expected.rejected == {"does not fit": 1}
    assert [r.token_times_s for r in found.served] == [pytest.approx(r.token_times_s) for r in expected.served]
    assert [r.output_tokens for r in found.served] == [r.output_tokens for r in requests[:40]]
    assert (found.num_steps, found.request_steps) == (expected.num_steps, expected.request_steps)
    assert found.num_preemptions == expected.num_preemptions
    assert found.good_share == expected.good_share
    assert found.busy_share == pytest.approx(expected.busy_share)


def test_engines_on_one_model_have_their_own_schedulers() -> None:
    requests = [TracedRequest(arrival_s=0.01 * i, spans=(Span(i, 9),), output_tokens=4) for i in range(3)]
    with LLM("tiny", device="cpu", num_kv_blocks=32, clock=CPUClock()) as llm:
        for seats in (1, 3):
            core = core_with(llm, replace(llm.resolved.scheduler, max_num_seqs=seats))
            report = serve_open_loop(core, requests).report
            assert [r.output_tokens for r in report.served] == [4, 4, 4]
            assert max(len(step.chunks) for step in core.recorder.steps) <= seats
            assert not core.has_work
        assert not llm.recorder.steps


@pytest.mark.parametrize("clock", [ComputeClock(), CPUClock()])
def test_sleep_costs_nothing_and_counts(clock: ComputeClock) -> None:
    begin = clock.now()
    clock.sleep(3600.0)
    clock.sleep(-5.0)
    assert 3600.0 <= clock.now() - begin < 3700.0


def test_a_stopped_clock_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    computed_s = 5.0
    monkeypatch.setattr(ComputeClock, "_elapsed_s", lambda _: computed_s)
    clock = ComputeClock()
    computed_s += 1.0
    with suppress(ZeroDivisionError), clock.stopped():
        computed_s += 10.0
        clock.sleep(0.5)
        raise ZeroDivisionError
    computed_s += 2.0
    assert clock.now() == pytest.approx(3.5)


def test_turns_are_refused() -> None:
    first = TracedRequest(arrival_s=0.0, spans=(Span(0, 9),), output_tokens=1)
    second = TracedRequest(arrival_s=0.0, spans=(Span(0, 9),), output_tokens=1, follows=0)
    config = SchedulerConfig(max_model_len=128, max_num_seqs=6, max_batched_tokens=128)
    core = simulated_engine(config, load_tokenizer(data_path("tiny")), vocab_size=272, num_kv_blocks=14)
    with pytest.raises(ConfigError, match="independent"):
        serve_open_loop(core, [first, second])
