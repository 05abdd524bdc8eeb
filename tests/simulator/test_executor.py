"""The simulated executor drives the real scheduler: same plans as the model, time from the cost model alone."""

import pytest

from infra_lab import LLM, SamplingParams
from infra_lab.clock import VirtualClock
from infra_lab.engine.core import EngineCore
from infra_lab.errors import ConfigError
from infra_lab.scheduler.config import SchedulerConfig
from infra_lab.scheduler.plan import NO_TOKEN
from infra_lab.simulator.cost import LinearStepCost
from infra_lab.simulator.executor import simulated_engine
from infra_lab.simulator.workload import lognormal_shapes

PROMPTS = [[65 + i] * (5 + 13 * i) for i in range(8)]
PARAMS = SamplingParams(max_tokens=20, temperature=0.0, ignore_eos=True)


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM("tiny", dtype="float32", device="cpu", num_kv_blocks=14, max_batched_tokens=48, max_num_seqs=6)


def simulated(llm: LLM, **settings: object) -> EngineCore:
    config = SchedulerConfig(max_model_len=1024, max_batched_tokens=48, max_num_seqs=6)
    return simulated_engine(config, llm.tokenizer, vocab_size=272, num_kv_blocks=14, **settings)  # type: ignore[arg-type]


def drain(core: EngineCore) -> None:
    while core.has_work:
        core.step()


def test_the_plans_are_those_of_the_model(llm: LLM) -> None:
    llm.recorder.clear()
    llm.generate(PROMPTS, PARAMS)
    core = simulated(llm)
    for prompt in PROMPTS:
        core.add(prompt, PARAMS)
    drain(core)
    ours = [[(c.request_id, c.start, c.num_tokens) for c in step.chunks] for step in core.recorder.steps]
    assert ours == [[(c.request_id, c.start, c.num_tokens) for c in step.chunks] for step in llm.recorder.steps]
    assert [s.preempted for s in core.recorder.steps] == [s.preempted for s in llm.recorder.steps]
    assert any(s.preempted for s in core.recorder.steps), "the pool was meant to be too small"


def test_time_is_the_cost_model_and_nothing_else(llm: LLM) -> None:
    cost = LinearStepCost(fixed_s=1.0, per_token_s=0.5, per_context_token_s=0.25)
    core = simulated(llm, cost=cost)
    core.add([1] * 10, SamplingParams(max_tokens=3, temperature=0.0, ignore_eos=True))
    drain(core)
    # a prompt of 10, then two decodes that read 11 and 12 keys
    expected = [1 + 5 + 2.5, 1 + 0.5 + 0.25 * 11, 1 + 0.5 + 0.25 * 12]
    assert [step.duration_s for step in core.recorder.steps] == pytest.approx(expected)
    assert core.clock.now() == pytest.approx(sum(expected))


@pytest.mark.parametrize("device_s", [1.0, 0.25])
def test_overlap_hides_the_shorter_of_the_two(llm: LLM, device_s: float) -> None:
    """A caller that takes half a second between two calls of `step`, which the device need not wait for."""
    caller_s, num_steps, token_ids = 0.5, 12, {}
    for overlap in (False, True):
        core = simulated(llm, cost=LinearStepCost(fixed_s=device_s), overlap=overlap)
        core.add([1] * 10, SamplingParams(max_tokens=num_steps, temperature=0.0, ignore_eos=True))
        token_ids[overlap] = []
        while core.has_work:
            token_ids[overlap] += [token for delta in core.step() for token in delta.token_ids]
            core.clock.sleep(caller_s)
        assert len(core.recorder.steps) == num_steps
        each_s = max(device_s, caller_s) if overlap else device_s + caller_s
        # the first step is launched by the call that waits for it, and its caller is the last to be waited for
        once_s = min(device_s, caller_s) if overlap else 0.0
        assert core.clock.now() == pytest.approx(num_steps * each_s + once_s)
    assert token_ids[True] == token_ids[False]


def test_who_has_ended_while_the_device_computes_gets_no_token(llm: LLM) -> None:
    core = simulated(llm, cost=LinearStepCost(fixed_s=1.0), overlap=True)
    for name in ("goes", "stays"):
        core.add([1] * 10, PARAMS, request_id=name)
    core.step()
    core.abort("goes")
    assert [delta.request_id for delta in core.step()] == ["stays"]
    assert core.last_step is not None
    assert core.last_step[1].token_ids[0] == NO_TOKEN
    drain(core)
    assert core.scheduler.blocks.num_free_blocks == 14


def test_free_steps_leave_the_clock_alone(llm: LLM) -> None:
    clock = VirtualClock(5.0)
    core = simulated(llm, clock=clock)
    core.add([1, 2, 3], PARAMS)
    drain(core)
    assert clock.now() == 5.0


def test_samples_of_one_prompt_differ(llm: LLM) -> None:
    core = simulated(llm)
    core.add([1] * 9, SamplingParams(n=3, max_tokens=5))
    texts = {0: "", 1: "", 2: ""}
    while core.has_work:
        for delta in core.step():
            texts[delta.index] += delta.text
    assert texts[0] == "the q"
    assert len(set(texts.values())) == 3


def test_lognormal_lengths() -> None:
    shapes = lognormal_shapes(2000, median_prompt=100, median_output=50, sigma=0.5, max_total=400, seed=3)
    assert shapes == lognormal_shapes(2000, median_prompt=100, median_output=50, sigma=0.5, max_total=400, seed=3)
    assert all(min(s) >= 1 and s.total_tokens <= 400 for s in shapes)
    prompts = sorted(s.prompt_tokens for s in shapes)
    assert 93 < prompts[1000] < 107  # the median; its standard error is about 1.4
    assert 1.5 < prompts[1682] / prompts[1000] < 1.8  # one sigma above: e^0.5 = 1.65
    assert lognormal_shapes(3, median_prompt=7, median_output=9, sigma=0.0, max_total=99) == [(7, 9)] * 3


@pytest.mark.parametrize("change", [{"num_requests": 0}, {"median_prompt": 0}, {"sigma": -1.0}, {"max_total": 1}])
def test_no_workload(change: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        lognormal_shapes(**{"num_requests": 4, "median_prompt": 8, "median_output": 8, "max_total": 99, **change})  # type: ignore[arg-type]
