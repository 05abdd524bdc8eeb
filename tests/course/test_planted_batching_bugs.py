"""Each planted bug breaks the invariant that the lesson says, and no other; without one all hold."""

from collections.abc import Callable

import pytest

from infra_lab import LLM, SamplingParams
from infra_lab.clock import VirtualClock
from infra_lab.course.planted_batching_bugs import BATCHING_BUGS, planted_batching_bug
from infra_lab.data import data_path
from infra_lab.errors import ConfigError
from infra_lab.models.tokenizer import load_tokenizer
from infra_lab.scheduler.config import SchedulerConfig
from infra_lab.scheduler.policies import BatchingPolicy, DynamicPolicy, PriorityPolicy
from infra_lab.simulator.cost import LinearStepCost
from infra_lab.simulator.executor import simulated_engine
from infra_lab.simulator.report import ServiceLevel
from infra_lab.simulator.traced_request import Span, TracedRequest
from infra_lab.widgets.batching_run import BatchRun, serve

BROKEN = {
    "none": set(),
    "A": {"who decodes gets a token in every step"},
    "B": {"nobody waits longer than the rule says"},
    "C": {"nobody starves"},
    "D": {"no step exceeds the budget"},
}
BUDGET, WAIT_S, LEVEL_S = 64, 0.05, 0.2


def request(arrival_s: float, prompt: int = 8, output: int = 6, priority: int = 0) -> TracedRequest:
    stream = Span(round(arrival_s * 1e6) + 7 * prompt, prompt)
    return TracedRequest(arrival_s=arrival_s, spans=(stream,), output_tokens=output, priority=priority)


def run(requests: list[TracedRequest], policy: str | BatchingPolicy, num_seqs: int, budget: int = BUDGET) -> BatchRun:
    config = SchedulerConfig(policy=policy, max_model_len=256, max_num_seqs=num_seqs, max_batched_tokens=budget)
    cost = LinearStepCost(fixed_s=0.01, per_token_s=1e-4)
    core = simulated_engine(
        config, load_tokenizer(data_path("tiny")), vocab_size=256, num_kv_blocks=512, cost=cost, clock=VirtualClock()
    )
    return serve(core, requests, ServiceLevel(ttft_s=1.0, tpot_s=1.0))


def mixed() -> list[TracedRequest]:
    return [request(0.005 * i, prompt=200 if i % 4 == 3 else 9 + i, output=12) for i in range(12)]


def keeps_the_budget() -> bool:
    return all(step.num_tokens <= BUDGET for step in run(mixed(), "chunked-prefill", 8).steps)


def decodes_move() -> bool:
    steps, decoding = run(mixed(), "chunked-prefill", 8).steps, set[str]()
    for step in steps:
        planned = {chunk.request_id for chunk in step.chunks}
        if decoding - planned:
            return False
        decoding |= {chunk.request_id for chunk in step.chunks if chunk.token_id is not None}
        decoding -= {ending.request_id for ending in step.finished}
    return True


def waits_are_bounded() -> bool:
    policy = DynamicPolicy(batch_size=16, max_wait_s=WAIT_S)
    lanes = run([request(0.03 * i, output=1) for i in range(8)], policy, 16, budget=256).lanes
    return lanes[0].admitted_s <= WAIT_S + 1e-9


def nobody_starves() -> bool:
    requests = [request(0.0), request(0.001, priority=1), *(request(0.002 + 0.04 * i) for i in range(20))]
    lanes = run(requests, PriorityPolicy(level_s=LEVEL_S), 1).lanes
    return all(lane.admitted_s > lanes[1].admitted_s for lane in lanes[2:] if lane.arrival_s > 0.001 + LEVEL_S)


INVARIANTS: dict[str, Callable[[], bool]] = {
    "no step exceeds the budget": keeps_the_budget,
    "who decodes gets a token in every step": decodes_move,
    "nobody waits longer than the rule says": waits_are_bounded,
    "nobody starves": nobody_starves,
}


def broken() -> set[str]:
    return {name for name, holds in INVARIANTS.items() if not holds()}


@pytest.mark.parametrize("bug", BATCHING_BUGS)
def test_a_bug_breaks_what_it_should(bug: str) -> None:
    with planted_batching_bug(bug):
        assert broken() == BROKEN[bug]
    assert broken() == set()


@pytest.mark.parametrize("bug", BATCHING_BUGS)
def test_no_bug_changes_a_text(bug: str) -> None:
    """Which is why no test of outputs finds one."""
    llm = LLM("tiny", dtype="float32", num_kv_blocks=64, max_batched_tokens=24, max_num_seqs=4)
    params = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True)
    prompts = ["Return the number of items in the list.", "The", "What is json.dumps?"]
    alone = [llm.generate([prompt], params)[0].token_ids for prompt in prompts]
    with planted_batching_bug(bug):
        together = [output.token_ids for output in llm.generate(prompts, params)]
    assert together == alone


def test_an_unknown_bug() -> None:
    with pytest.raises(ConfigError, match="there is no bug 'Z'; there are none, A"), planted_batching_bug("Z"):
        pass
