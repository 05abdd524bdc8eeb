"""The panel on engines: runs against the simulator's own loop and by hand, and what the figure and the words say of them."""

from typing import Any

import pytest

from infra_lab.engine.presets import PRESETS as ENGINES
from infra_lab.errors import ConfigError, InvalidRequestError
from infra_lab.scheduler.config import SchedulerConfig
from infra_lab.simulator.cost import LinearStepCost
from infra_lab.simulator.replay import simulate
from infra_lab.simulator.traced_request import Span, TracedRequest
from infra_lab.widgets.engines_panel import (
    COMPARED,
    MACHINE,
    PRESETS,
    Comparison,
    compare,
    conversations,
    engines_panel,
)
from infra_lab.widgets.engines_run import EngineRun, Machine, Speculating, serve_with
from infra_lab.widgets.figures.engine_comparison import engine_comparison

COST, DRAFT = LinearStepCost(fixed_s=0.01, per_token_s=0.001), LinearStepCost(fixed_s=0.002)
SMALL = Machine(
    cost=COST, draft_cost=DRAFT, num_kv_blocks=8, block_size=4, max_model_len=32, max_num_seqs=2,
    max_batched_tokens=32, max_tokens=12,
)  # fmt: skip
STATIC, PAGED, RADIX = (ENGINES[name].settings for name in COMPARED)


def ask(arrival_s: float, prompt: int, output: int, stream: int = 0, **more: Any) -> TracedRequest:
    return TracedRequest(arrival_s=arrival_s, spans=(Span(stream, prompt),), output_tokens=output, **more)


def test_without_speculation_it_is_the_replay() -> None:
    """Two loops over the same scheduler: this one, and the simulator's. Answers have the length that a request may have."""
    requests = [ask(0.1 * i, 40 + 7 * i, 20, stream=i) for i in range(6)]
    machine = Machine(
        cost=COST, draft_cost=DRAFT, num_kv_blocks=64, max_model_len=256, max_batched_tokens=64, max_tokens=20
    )
    run = serve_with({**RADIX, "policy": "chunked-prefill"}, requests, machine)
    config = SchedulerConfig(max_model_len=256, max_num_seqs=32, max_batched_tokens=64)
    other = simulate(requests, config, COST, num_kv_blocks=64)
    assert sorted(run.ttft_s) == pytest.approx(sorted(r.first_token_s - r.arrival_s for r in other.served))
    assert run.end_s == pytest.approx(other.duration_s)
    assert run.output_tokens == other.output_tokens
    assert len(run.pool) == other.num_steps
    assert run.seats_used == other.request_steps


def test_a_run_by_hand() -> None:
    """5 prompt tokens: 10 + 5 ms, then 11 ms a token. In blocks of 4: 5 of 8 slots, 6 of 8, 7 of 8."""
    run = serve_with(PAGED, [ask(1.0, 5, 3)], SMALL)
    assert run.ttft_s == pytest.approx([0.015])
    assert run.tpot_s == pytest.approx([0.011])
    assert [(use.stored, use.reserved) for use in run.pool] == [(5, 8), (6, 8), (7, 8)]
    assert (run.prompt_tokens, run.computed_prompt_tokens, run.output_tokens, run.decodes) == (5, 5, 3, 2)
    assert run.kv_utilisation == pytest.approx((15 * 5 + 11 * 6 + 11 * 7) / (37 * 8))
    assert run.mean_batch == 1.0
    assert run.tokens_per_s == pytest.approx(3 / 1.037)


def test_whole_reservations_pay_for_the_longest_answer() -> None:
    """5 + 12 tokens, the last of which is never stored: 16 slots from the start, though the answer stops after 3."""
    run = serve_with(STATIC, [ask(0.0, 5, 3)], SMALL)
    assert [(use.stored, use.reserved) for use in run.pool] == [(5, 16), (6, 16), (7, 16)]


def test_a_static_batch_waits_for_its_slowest() -> None:
    requests = [ask(0.0, 4, 8, stream=1), ask(0.0, 4, 2, stream=2), ask(0.005, 4, 2, stream=3)]
    static, paged = (serve_with(settings, requests, SMALL) for settings in (STATIC, PAGED))
    assert max(static.ttft_s) > 0.09  # two prompts, seven more steps, and its own
    assert max(paged.ttft_s) < 0.05


def test_the_second_turn_is_found_in_the_tree() -> None:
    first = ask(0.0, 8, 3, answer_stream=5)
    second = TracedRequest(arrival_s=1.0, spans=(*first.spans, Span(5, 2), Span(7, 3)), output_tokens=2, follows=0)
    run = serve_with(RADIX, [first, second], SMALL)
    assert (run.prompt_tokens, run.computed_prompt_tokens) == (8 + 13, 8 + 3)
    assert serve_with(PAGED, [first, second], SMALL).computed_prompt_tokens == 8 + 13


def test_proposals_that_are_all_accepted() -> None:
    """7 tokens: one from the prompt, then two steps of 2 proposals and a token. Each step computes 3, after 2 proposals."""
    run = serve_with(PAGED, [ask(0.0, 5, 7)], SMALL, Speculating(2, 1.0))
    assert [use.end_s for use in run.pool] == pytest.approx([0.015, 0.015 + 0.017, 0.015 + 2 * 0.017])
    assert run.output_tokens == 7
    assert run.tpot_s == pytest.approx([2 * 0.017 / 6])


def test_proposals_that_are_never_accepted_cost_and_change_nothing() -> None:
    plain, spoken = (serve_with(PAGED, [ask(0.0, 5, 6)], SMALL, Speculating(count, 0.0)) for count in (0, 2))
    assert len(plain.pool) == len(spoken.pool) == 6
    assert plain.output_tokens == spoken.output_tokens == 6
    assert spoken.end_s == pytest.approx(0.015 + 5 * 0.017)


def test_the_acceptance_is_the_coins() -> None:
    """Of 3 proposals at 60%: 1 + 0.6 + 0.36 + 0.216 tokens a step, on average."""
    machine = Machine(
        cost=COST, draft_cost=DRAFT, num_kv_blocks=400, max_model_len=4096, max_batched_tokens=256, max_tokens=3000
    )
    run = serve_with(PAGED, [ask(0.0, 5, 3000)], machine, Speculating(3, 0.6))
    assert run.output_tokens / len(run.pool) == pytest.approx(2.176, rel=0.05)


def test_conversations_share_what_the_knobs_say() -> None:
    requests = conversations(10, 0.5, 2)
    assert len(requests) == 16
    assert [request.follows for request in requests[:4]] == [None, 0, None, 2]
    assert {request.spans[0] for request in requests} == {Span(0, 256)}
    assert {request.prompt_tokens for request in requests[::2]} == {512}
    for first, second in zip(requests[::2], requests[1::2], strict=True):
        assert second.spans[: len(first.spans)] == first.spans
        assert second.spans[len(first.spans)].stream == first.answer_stream
    assert len({request.spans[0] for request in conversations(10, 0.0, 1)}) == 16


def bars(figure: Any, name: str) -> list[float]:
    (found,) = (trace for trace in figure.data if trace.type == "bar" and trace.name == name)
    return list(found.x)


def test_the_figure_says_what_the_runs_are() -> None:
    runs, shown = compare(Comparison(engine="vllm-like", shared=75, drafts=2))
    figure = engine_comparison(runs, shown)
    rows = [runs[name] for name in COMPARED[::-1]]
    assert bars(figure, "computed") == [run.computed_prompt_tokens for run in rows]
    assert bars(figure, "from the prefix cache") == [run.prompt_tokens - run.computed_prompt_tokens for run in rows]
    assert bars(figure, "holds a token") == pytest.approx([100 * run.kv_utilisation for run in rows])
    reserved, stored = figure.data[:2]
    pool = runs["vllm-like"].pool
    assert (reserved.name, stored.name) == ("reserved", "holds a token")
    assert list(stored.y)[:-1] == pytest.approx([100 * use.stored / (750 * 16) for use in pool], abs=0.01)
    assert all(low <= high for low, high in zip(stored.y, reserved.y, strict=True))
    assert [label for label in figure.layout.yaxis2.categoryarray if "▸" in label] == ["<b>▸ vllm-like</b>"]


def test_every_preset_shows_its_runs() -> None:
    panel = engines_panel()
    for name, knobs in PRESETS.items():
        panel.set(**vars(knobs))
        assert panel.params == knobs, name
        assert set(panel.result[0]) == set(COMPARED)
        for engine in COMPARED:
            assert f"{engine}: " in panel.summary


def test_what_the_lesson_says_of_it() -> None:
    def runs(**knobs: Any) -> dict[str, EngineRun]:
        return compare(Comparison(**knobs))[0]

    alone, common = runs(shared=0, turns=1), runs(shared=95, turns=1)
    assert alone["sglang-like"].computed_prompt_tokens == alone["sglang-like"].prompt_tokens
    assert common["sglang-like"].computed_prompt_tokens < 0.2 * common["vllm-like"].computed_prompt_tokens
    assert alone["fastertransformer-like"].kv_utilisation < 0.75 < 0.9 < alone["vllm-like"].kv_utilisation


def test_what_cannot_be_served_is_refused() -> None:
    with pytest.raises(ConfigError, match="no request"):
        serve_with(PAGED, [], MACHINE)
    with pytest.raises(InvalidRequestError, match="context of 32"):
        serve_with(PAGED, [ask(0.0, 40, 2)], SMALL)
