"""The panel's runs are the engine's own steps: what the figure and the words say is counted again from them."""

import threading
from collections.abc import Iterator
from itertools import pairwise

import pytest

from infra_lab.clock import VirtualClock
from infra_lab.data import data_path
from infra_lab.engine.core import EngineCore
from infra_lab.errors import ConfigError, InvalidRequestError
from infra_lab.models.tokenizer import load_tokenizer
from infra_lab.scheduler.config import SchedulerConfig
from infra_lab.scheduler.policies import DynamicPolicy
from infra_lab.simulator.cost import LinearStepCost
from infra_lab.simulator.executor import simulated_engine
from infra_lab.simulator.replay import simulate
from infra_lab.simulator.report import ServiceLevel
from infra_lab.simulator.traced_request import Span, TracedRequest
from infra_lab.widgets.batching_panel import (
    COST,
    KV_BLOCKS,
    LIMITS,
    NUM_REQUESTS,
    PRESETS,
    REAL,
    Batching,
    BatchingPanel,
    in_words,
    run_batching,
    scheduler_config,
    workload,
)
from infra_lab.widgets.batching_run import BatchRun, serve
from infra_lab.widgets.figures.batch_lanes import batch_lanes

POLICIES = ("static", "dynamic", "prefill-first", "continuous", "chunked-prefill", "sjf")


def engine(config: SchedulerConfig, *, blocks: int = 64) -> EngineCore:
    cost = LinearStepCost(fixed_s=0.01, per_token_s=0.001)
    return simulated_engine(
        config, load_tokenizer(data_path("tiny")), vocab_size=256, num_kv_blocks=blocks, cost=cost, clock=VirtualClock()
    )


def ask(arrival_s: float, prompt: int, output: int) -> TracedRequest:
    return TracedRequest(arrival_s=arrival_s, spans=(Span(int(1e3 * arrival_s), prompt),), output_tokens=output)


def trace(run: BatchRun, name: str) -> tuple[list[float | None], list[float | None]]:
    (found,) = (trace for trace in batch_lanes(run).data if trace.name == name)
    return list(found.x), list(found.y)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_run_is_the_one_of_the_replay(policy: str) -> None:
    """Two loops over the same scheduler: the engine's own, and the simulator's."""
    knobs = Batching(policy=policy, load=30, max_batch=8, max_wait=20)
    report = run_batching(knobs).report
    other = simulate(
        workload(30), scheduler_config(knobs), COST, num_kv_blocks=KV_BLOCKS, enable_prefix_cache=False, slo=LIMITS
    )
    assert report.num_served == other.num_served == NUM_REQUESTS
    for one, two in zip(report.served, other.served, strict=True):
        assert one.token_times_s == pytest.approx(two.token_times_s)
        assert (one.prompt_tokens, one.output_tokens, one.num_preemptions) == (
            two.prompt_tokens, two.output_tokens, two.num_preemptions,
        )  # fmt: skip
    assert report.good_share == other.good_share
    assert report.busy_share == pytest.approx(other.busy_share)
    assert report.request_steps == other.request_steps


def test_the_lanes_by_hand() -> None:
    """10 ms a step and 1 ms a token. `a`: 10 + 4 ms; `b` waits for it, since the batch has one seat."""
    config = SchedulerConfig(policy="static", max_model_len=64, max_num_seqs=1, max_batched_tokens=64)
    run = serve(engine(config), [ask(0.1, 4, 2), ask(0.105, 20, 1)], ServiceLevel(ttft_s=0.03, tpot_s=0.02))
    a, b = run.lanes
    assert (a.arrival_s, a.admitted_s, a.is_good) == (0.1, 0.1, True)
    assert a.token_times_s == pytest.approx([0.114, 0.125])
    assert b.admitted_s == pytest.approx(0.125)
    assert b.token_times_s == pytest.approx([0.155])
    assert not b.is_good
    assert trace(run, "waits") == ([0.105, 0.125, None], [1, 1, None])
    assert trace(run, "prompt") == ([0.1, 0.114, None, 0.125, 0.155, None], [0, 0, None, 1, 1, None])
    assert trace(run, "decodes") == ([0.114, 0.125, None], [0, 0, None])
    assert trace(run, "gap over the limit") == ([], [])
    assert trace(run, "missed a limit") == ([0.155], [1])
    assert trace(run, "in the step") == ([0.1, 0.155], [1, 1])
    assert trace(run, "in the queue") == ([0.1, 0.1, 0.105, 0.125], [1, 0, 1, 0])
    assert trace(run, "first token") == ([14.0, 50.0], [50.0, 100.0])


def test_a_long_prompt_makes_a_gap_over_the_limit() -> None:
    config = SchedulerConfig(policy="continuous", max_model_len=64, max_num_seqs=4, max_batched_tokens=64)
    run = serve(engine(config), [ask(0.0, 4, 5), ask(0.02, 40, 1)], ServiceLevel(ttft_s=1.0, tpot_s=0.02))
    times = run.lanes[0].token_times_s
    gaps = [later - time_s for time_s, later in pairwise(times)]
    assert gaps == pytest.approx([0.011, 0.051, 0.011, 0.011])
    assert trace(run, "gap over the limit")[0] == [round(times[1], 5), round(times[2], 5), None]
    starts = [x for x in trace(run, "decodes")[0] if x is not None]
    assert starts == [round(time_s, 5) for time_s in (times[0], times[1], times[2], times[4])]


def test_a_batch_that_is_held_moves_the_clock_to_its_end() -> None:
    policy = DynamicPolicy(batch_size=4, max_wait_s=0.5)
    config = SchedulerConfig(policy=policy, max_model_len=64, max_num_seqs=4, max_batched_tokens=64)
    run = serve(engine(config), [ask(1.0, 4, 1)], LIMITS)
    assert run.lanes[0].admitted_s == pytest.approx(1.5)
    assert run.report.busy_share < 0.02


def test_a_run_that_is_ended_leaves_nothing_in_the_engine() -> None:
    config = SchedulerConfig(max_model_len=64, max_num_seqs=4, max_batched_tokens=64)
    core = engine(config)

    def enough(done: int) -> None:
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        serve(core, [ask(0.0, 4, 1), ask(0.0, 4, 50)], LIMITS, progress=enough)
    assert not core.has_work
    assert core.scheduler.blocks.num_free_blocks == core.scheduler.blocks.num_blocks
    with pytest.raises(InvalidRequestError, match="the prompt has 90 tokens"):
        serve(core, [ask(0.0, 4, 9), ask(0.0, 90, 1)], LIMITS)
    assert not core.has_work


def test_policies_that_compute_prompts_whole_get_room_for_them() -> None:
    whole, chunks = (scheduler_config(Batching(policy=name, budget=64, chunk=512)) for name in ("continuous", "sjf"))
    assert (whole.max_batched_tokens, whole.max_prefill_chunk) == (1024, None)
    assert (chunks.max_batched_tokens, chunks.max_prefill_chunk) == (64, 64)
    policy = scheduler_config(PRESETS["Chapter: 32, 10 ms"]).policy
    assert isinstance(policy, DynamicPolicy)
    assert policy.batch_rule(500) == policy.batch_rule(1) == (32, 0.010)


def test_loads_have_the_same_requests() -> None:
    slow, fast = workload(5), workload(50)
    assert [request.spans for request in slow] == [request.spans for request in fast]
    assert [request.arrival_s / 10 for request in slow] == pytest.approx([request.arrival_s for request in fast])
    assert workload(5, 9) == slow[:9]
    assert [request.prompt_tokens for request in slow][7::8] == [900] * 4


@pytest.fixture(scope="module")
def panel() -> Iterator[BatchingPanel]:
    made = BatchingPanel()
    yield made
    made.stop()


def test_every_preset_shows_its_run(panel: BatchingPanel) -> None:
    for name, knobs in PRESETS.items():
        panel._buttons[name].click()
        panel.wait()
        assert panel.params == knobs
        assert panel.result is not None
        assert panel.result.report.num_served == NUM_REQUESTS
        assert panel.summary == in_words(panel.result)
    panel.reset()


def test_a_simulated_change_is_there_when_the_control_has_moved(panel: BatchingPanel) -> None:
    """Nothing waits for a thread, and no row appears."""
    panel.reset()
    before = panel.result
    threads = threading.active_count()
    panel.controls["load"].value = 100
    assert panel.result is not before
    assert panel.params.load == 100
    assert threading.active_count() == threads
    assert panel._progress.row.layout.display == "none"


def test_a_change_to_the_simulation_ends_a_real_run(panel: BatchingPanel) -> None:
    panel.reset()
    panel.controls["engine"].value = REAL
    panel.controls["engine"].value = Batching().engine
    panel.wait()
    assert panel.params == Batching()
    assert panel.result is not None
    assert panel.result.steps[0].start_s == run_batching(Batching()).steps[0].start_s, "a step of the simulation"
    assert panel._progress.row.layout.display == "none"


def test_a_real_run_says_how_far_it_is(panel: BatchingPanel) -> None:
    said: list[str] = []
    panel._progress.note.observe(lambda change: said.append(change["new"]), "text")
    panel.set(engine=REAL)
    panel.wait()
    assert any(f"of {NUM_REQUESTS} requests are done" in text for text in said)
    assert panel.result is not None
    assert panel.result.report.output_tokens == run_batching(Batching()).report.output_tokens
    panel.reset()


def test_an_unknown_policy_is_refused(panel: BatchingPanel) -> None:
    with pytest.raises(ConfigError, match="policy is 'fifo'"):
        panel.set(policy="fifo")


def test_the_saved_picture(panel: BatchingPanel) -> None:
    bundle = panel._repr_mimebundle_()
    assert {"image/png", "text/plain"} <= set(bundle)
    assert "Goodput" in bundle["text/plain"]
