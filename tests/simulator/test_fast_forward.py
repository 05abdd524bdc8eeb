"""Skipping over decode steps changes nothing: the same times to the last bit, the same blocks and the same prefix cache.

A cost that does not say that it goes by a step's shape has the scheduler asked at every step, which is the oracle here.
"""

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra_lab.errors import InfraLabError
from infra_lab.paged_kv.block_manager import BlockManager
from infra_lab.scheduler.config import SchedulerConfig
from infra_lab.scheduler.plan import StepPlan
from infra_lab.scheduler.policies import POLICIES
from infra_lab.scheduler.scheduler import Scheduler
from infra_lab.simulator import fast_forward, replay
from infra_lab.simulator.cost import LinearStepCost, ShapeCost, StepShape
from infra_lab.simulator.fast_forward import DecodeRun, decodes_ahead
from infra_lab.simulator.traced_request import Span, TracedRequest

COST = LinearStepCost(
    fixed_s=0.01, per_token_s=0.001, per_context_token_s=0.0001, per_request_s=0.0003, per_pair_s=1e-6
)


class _StepByStep:
    """A cost model that tells of plans only."""

    def __init__(self, cost: ShapeCost) -> None:
        self._cost = cost

    def step_s(self, plan: StepPlan) -> float:
        return self._cost.step_s(plan)


def drawn(number: int, seed: int, rate_per_s: float) -> list[TracedRequest]:
    """Requests with shared prefixes, some of them turns that follow another one and repeat its answer."""
    rng, now_s, requests = random.Random(seed), 0.0, []
    for index in range(number):
        now_s += rng.expovariate(rate_per_s)
        spans: tuple[Span, ...] = (Span(1000 + rng.randrange(3), 20), Span(index, rng.randint(1, 40)))
        follows = rng.randrange(index) if index and rng.random() < 0.4 else None
        if follows is not None:
            before = requests[follows]
            assert before.answer_stream is not None
            spans = (*before.spans, Span(before.answer_stream, before.output_tokens), Span(index, rng.randint(1, 9)))
        requests.append(
            TracedRequest(
                arrival_s=rng.random() if follows is not None else now_s,
                spans=spans,
                output_tokens=rng.randint(1, 40),
                answer_stream=2000 + index,
                follows=follows,
                priority=rng.choice([0, 0, 0, 1]),
            )
        )
    return requests


def run(requests: list[TracedRequest], config: SchedulerConfig, cost: Any, **sizes: Any) -> tuple[Any, ...]:
    """All that a replay leaves behind, and how many steps were planned."""
    blocks = BlockManager(
        sizes["num_kv_blocks"],
        sizes["block_size"],
        enable_prefix_cache=sizes["prefix_index"] is not None,
        prefix_index=sizes["prefix_index"] or "hash",
    )
    simulation = replay._Replay(requests, Scheduler(config, blocks), cost, 250, lambda done, total: None)
    simulation.run()
    blocks.check_integrity([])
    return simulation.report(0.0, None), blocks.snapshot(), simulation.now_s


@settings(max_examples=150, deadline=None)
@given(
    policy=st.sampled_from(sorted(POLICIES)),
    number=st.integers(1, 25),
    rate_per_s=st.sampled_from([0.5, 5.0, 50.0]),
    num_kv_blocks=st.sampled_from([64, 100, 400]),
    block_size=st.sampled_from([1, 4, 16]),
    max_num_seqs=st.integers(1, 6),
    prefix_index=st.sampled_from([None, "hash", "radix"]),
    reservation=st.sampled_from(["paged", "whole"]),
    seed=st.integers(0, 1_000),
)
def test_the_same_to_the_last_bit(
    policy: str, number: int, rate_per_s: float, num_kv_blocks: int, block_size: int, max_num_seqs: int,
    prefix_index: str | None, reservation: Any, seed: int,
) -> None:  # fmt: skip
    requests = drawn(number, seed, rate_per_s)
    config = SchedulerConfig(
        policy=policy, max_model_len=256, max_num_seqs=max_num_seqs, max_batched_tokens=256, kv_reservation=reservation
    )
    sizes = {"num_kv_blocks": num_kv_blocks, "block_size": block_size, "prefix_index": prefix_index}
    assert run(requests, config, COST, **sizes) == run(requests, config, _StepByStep(COST), **sizes)


def shared_prompts() -> list[TracedRequest]:
    spans = [(Span(0, 30),), (Span(0, 30),), (Span(0, 30), Span(7, 40), Span(3, 4))]
    return [
        TracedRequest(arrival_s=0.5 * i, spans=spans[i], output_tokens=(40, 33, 5)[i], answer_stream=7)
        for i in range(3)
    ]


def quoted_while_written() -> list[TracedRequest]:
    """The second begins with the first 20 tokens of an answer that has some 50 by then, and goes on."""
    writer = TracedRequest(arrival_s=0.0, spans=(Span(0, 30),), output_tokens=90, answer_stream=7)
    reader = TracedRequest(arrival_s=0.5, spans=(Span(0, 30), Span(7, 20)), output_tokens=5, answer_stream=8)
    return [writer, reader]


def test_most_steps_are_not_planned() -> None:
    config = SchedulerConfig(max_model_len=256, max_num_seqs=4, max_batched_tokens=64)
    calls = 0

    class Counting(LinearStepCost):
        def step_s(self, plan: StepPlan) -> float:
            nonlocal calls
            calls += 1
            return super().step_s(plan)

    cost = Counting(fixed_s=0.01)
    report = run(shared_prompts(), config, cost, num_kv_blocks=64, block_size=4, prefix_index="hash")[0]
    assert report.num_steps > 40
    assert calls == 6, "each request's prompt and last token"


def _one_too_many(scheduler: Scheduler, right: Any = decodes_ahead) -> int:
    steps: int = right(scheduler)
    return steps + 1 if steps else 0


def _deaf_to_who_waits(scheduler: Scheduler, right: Any = decodes_ahead) -> int:
    waiting, scheduler.waiting = scheduler.waiting, type(scheduler.waiting)()
    steps: int = right(scheduler)
    scheduler.waiting = waiting
    return steps


def _commit_nothing(run: DecodeRun, num_steps: int) -> None:
    run.num_steps += num_steps
    run.context += num_steps * run.num_requests


def _context_stands_still(num_requests: int, context: int) -> StepShape:
    return StepShape(num_requests, num_requests, num_requests, 50, 50)


@pytest.mark.parametrize(
    ("owner", "name", "wrong"),
    [
        (replay, "decodes_ahead", _one_too_many),
        (replay, "decodes_ahead", _deaf_to_who_waits),
        (fast_forward.DecodeRun, "end_stretch", _commit_nothing),
        (StepShape, "of_decodes", staticmethod(_context_stands_still)),
    ],
)
def test_a_planted_bug_is_seen(
    owner: Any, name: str, wrong: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SchedulerConfig(max_model_len=256, max_num_seqs=4, max_batched_tokens=64)
    sizes = {"num_kv_blocks": 70, "block_size": 4, "prefix_index": "hash"}
    traces = [(drawn(25, 3, 50.0), COST), (quoted_while_written(), LinearStepCost(fixed_s=0.01))]
    right = [run(requests, config, _StepByStep(cost), **sizes) for requests, cost in traces]
    assert [run(requests, config, cost, **sizes) for requests, cost in traces] == right
    monkeypatch.setattr(owner, name, wrong)
    try:
        found = [run(requests, config, cost, **sizes) for requests, cost in traces]
    except (StopIteration, InfraLabError):
        return
    assert found != right
