"""Figures of real records: what is drawn is what was recorded, counted again by other means."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from infra_lab.engine.kv_map import KVMap
from infra_lab.engine.recorder import StepRecord
from infra_lab.errors import ConfigError
from infra_lab.paged_kv.snapshot import BlockState
from infra_lab.widgets import figures, theme
from infra_lab.widgets.figures.kv_block_map import HALF, block_at, num_columns
from tests.widgets.conftest import run_simulated


@pytest.fixture(params=["simulated", "tiny"])
def steps(request: pytest.FixtureRequest) -> list[StepRecord]:
    recorded: list[StepRecord] = request.getfixturevalue(f"{request.param}_steps")
    return recorded


def cells(figure: Any, name: str) -> dict[tuple[int, int], int]:
    """(step, lane) → tokens of one heatmap of the timeline."""
    (trace,) = (trace for trace in figure.data if trace.type == "heatmap" and trace.name == name)
    return {(int(x), int(y)): int(z) for x, y, z in zip(trace.x, trace.y, trace.z, strict=True) if np.isfinite(z)}


def test_the_timeline_has_a_cell_for_each_chunk(steps: list[StepRecord]) -> None:
    figure = figures.step_timeline(steps)
    order: list[str] = []
    wanted: dict[str, dict[tuple[int, int], int]] = {"prefill": {}, "decode": {}}
    for record in steps:
        for chunk in record.chunks:
            order += [chunk.request_id] * (chunk.request_id not in order)
            kind = "decode" if chunk.num_tokens == 1 and chunk.token_id is not None else "prefill"
            wanted[kind][record.step, order.index(chunk.request_id)] = chunk.num_tokens
    assert {kind: cells(figure, kind) for kind in wanted} == wanted
    assert [label.rpartition(" ")[2] for label in figure.layout.yaxis.ticktext] == order


def test_the_timeline_has_every_step_and_lane_as_a_row_and_a_column(steps: list[StepRecord]) -> None:
    # plotly widens a cell over the columns that are missing beside it.
    for trace in figures.step_timeline(steps).data[:3]:
        assert {record.step for record in steps} <= set(trace.x.astype(int))
        assert set(range(len({c.request_id for r in steps for c in r.chunks}))) <= set(trace.y.astype(int))


def test_the_timeline_marks_what_happened(simulated_steps: list[StepRecord]) -> None:
    marks = {trace.name: trace for trace in figures.step_timeline(simulated_steps).data if trace.type == "scatter"}
    hits = [a for record in simulated_steps for a in record.admitted if a.num_cached_tokens]
    assert len(marks["from the prefix cache"].x) == len(hits)
    assert f"{hits[0].num_cached_tokens} tokens from the prefix cache" in marks["from the prefix cache"].text[0]
    assert len(marks["preempted"].x) == sum(len(record.preempted) for record in simulated_steps)
    assert len(marks["finished"].x) == sum(len(record.finished) for record in simulated_steps)


def test_a_preempted_request_waits_until_it_runs_again(simulated_steps: list[StepRecord]) -> None:
    waiting = cells(figures.step_timeline(simulated_steps), "preempted")
    lanes: dict[str, int] = {}
    away: set[str] = set()
    wanted = set()
    for record in simulated_steps:
        for chunk in record.chunks:
            lanes.setdefault(chunk.request_id, len(lanes))
        away = (away | set(record.preempted)) - {chunk.request_id for chunk in record.chunks}
        wanted |= {(record.step, lanes[name]) for name in away}
    assert set(waiting) == wanted
    assert wanted


def test_the_strips_are_blocks_and_tokens_of_each_step(steps: list[StepRecord]) -> None:
    blocks, tokens, decodes = figures.step_timeline(steps).data[-3:]
    assert list(blocks.y[1:-1]) == [record.used_blocks for record in steps]
    assert list(tokens.y[1:-1]) == [record.num_tokens for record in steps]
    assert list(decodes.y[1:-1]) == [record.num_decodes for record in steps]
    assert figures.step_timeline(steps).layout.yaxis2.range == (0, steps[0].total_blocks)


def test_upto_dims_what_comes_later(steps: list[StepRecord]) -> None:
    step = steps[2].step
    shade, edge = figures.step_timeline(steps, upto=step).layout.shapes
    assert (shade.x0, shade.x1, edge.x0) == (step + 0.5, steps[-1].step + 0.5, step + 0.5)
    assert not figures.step_timeline(steps).layout.shapes


def test_a_timeline_always_has_the_same_traces(simulated_steps: list[StepRecord], tiny_steps: list[StepRecord]) -> None:
    kinds = [
        [trace.type for trace in figures.step_timeline(steps).data] for steps in ([], simulated_steps[:1], tiny_steps)
    ]
    assert kinds[0] == kinds[1] == kinds[2]
    assert figures.step_timeline([]).layout.annotations[0].text == "no steps recorded"


def maps(steps: Sequence[StepRecord]) -> list[KVMap]:
    return [record.kv_map for record in steps if record.kv_map is not None]


def test_the_block_map_counts_and_draws_every_block(steps: list[StepRecord]) -> None:
    for kv_map in maps(steps):
        figure = figures.kv_block_map(kv_map)
        grid, gauges, shared, texts = figure.data[0], figure.data[1], figure.data[3], figure.data[6]
        size, columns = kv_map.block_size, num_columns(len(kv_map.blocks))
        assert len(grid.z) == len(texts.text) == len(kv_map.blocks)
        used = [view for view in kv_map.blocks if view.state is BlockState.USED]
        bars = sum(min(len(view.users), 3) for view in used) + kv_map.count(BlockState.CACHED)
        assert len(gauges.x) == bars
        longest = 2 * (HALF - 0.03)
        slots = sum(use.num_tokens for view in used for use in view.users[:3]) + size * kv_map.count(BlockState.CACHED)
        assert sum(gauges.x) / longest * size == pytest.approx(slots)
        centres = {
            (round(np.mean(part[:4, 0])), round(np.mean(part[:4, 1])))
            for part in np.stack([shared.x, shared.y], -1).reshape(-1, 6, 2)
        }
        assert centres == {(b % columns, b // columns) for b, view in enumerate(kv_map.blocks) if view.ref_count > 1}
        names = [trace.name for trace in figure.data if trace.showlegend]
        assert f"free {kv_map.count(BlockState.FREE)}" in names
        assert f"◇ cached, may be evicted {len(kv_map.eviction_order)}" in names


def test_states_have_letters_as_well_as_colours(simulated_steps: list[StepRecord]) -> None:
    for kv_map in maps(simulated_steps):
        texts = figures.kv_block_map(kv_map).data[6].text
        for block, view in enumerate(kv_map.blocks):
            number, sign = texts[block].split("<br>")
            assert number == f"<b>{block}</b>"
            if view.state is BlockState.USED:
                assert sign.startswith(theme.short_name(view.users[0].request_id))
            else:
                assert sign == {"free": "·", "cached": "◇"}[view.state.value]


def test_a_block_has_its_requests_colour_in_every_step(simulated_steps: list[StepRecord]) -> None:
    seen: dict[str, set[float]] = {}
    for kv_map in maps(simulated_steps):
        codes = figures.kv_block_map(kv_map).data[0].z
        for view, code in zip(kv_map.blocks, codes, strict=True):
            if view.ref_count == 1 and view.users:
                seen.setdefault(view.users[0].request_id, set()).add(float(code))
    assert len(seen) > 3
    assert all(len(codes) == 1 for codes in seen.values())


def test_copies_and_the_selected_block_are_outlined(simulated_steps: list[StepRecord]) -> None:
    record = next(record for record in simulated_steps if record.copies)
    assert record.kv_map is not None
    copied = [copy.destination for copy in record.copies]
    figure = figures.kv_block_map(record.kv_map, selected=5, highlight=copied)
    assert len(figure.data[4].x) == 6 * len(copied)
    assert np.nanmean(figure.data[5].x[:4]) == pytest.approx(5 % num_columns(len(record.kv_map.blocks)))
    assert len(figures.kv_block_map(record.kv_map).data[5].x) == 0


@pytest.mark.parametrize("count", [1, 7, 12, 13, 128, 129, 512, 513, 5000])
def test_every_block_is_found_at_its_place(count: int) -> None:
    columns = num_columns(count)
    for block in {0, count // 2, count - 1}:
        assert block_at(block % columns + 0.3, block // columns - 0.3, count) == block
    assert block_at(count % columns, count // columns, count) is None
    assert block_at(-1, 0, count) is None


def test_big_pools_lose_their_texts_but_not_their_hover(tokenizer: Any) -> None:
    record = run_simulated(tokenizer, blocks=700)[5]
    assert record.kv_map is not None
    figure = figures.kv_block_map(record.kv_map)
    assert len(figure.data[1].x) == 0
    assert set(figure.data[6].text) <= {"", "◇"}
    assert len(figure.data[0].text) == 700


POINT = figures.RooflinePoint("decode", flops=14e9, num_bytes=14e9, seconds=0.01)


def test_the_roof_is_bandwidth_times_intensity_until_the_peak() -> None:
    figure = figures.roofline({"HBM": 2e12, "L2": 8e12}, {"tensor": 4e14, "vector": 2e13}, [POINT])
    slopes, flats = figure.data[:2], figure.data[2:4]
    for trace, bandwidth in zip(slopes, (2e12, 8e12), strict=True):
        assert np.asarray(trace.y) / np.asarray(trace.x) == pytest.approx([bandwidth] * 2)
        assert trace.y[1] == pytest.approx(4e14)
    assert [trace.y[0] for trace in flats] == [4e14, 2e13]
    gaps, marks = figure.data[-2:]
    assert (marks.x[0], marks.y[0]) == pytest.approx((1.0, 1.4e12))
    assert gaps.y[1] == pytest.approx(8e12)
    assert "18% of the roof, memory-bound" in marks.customdata[0]
    assert figure.layout.xaxis.type == figure.layout.yaxis.type == "log"


def test_a_point_beyond_the_ridge_is_compute_bound() -> None:
    figure = figures.roofline(1e12, 1e14, [figures.RooflinePoint("gemm", 1e12, 1e9, 0.02)])
    assert "50% of the roof, compute-bound" in figure.data[-1].customdata[0]


def test_percentiles_lie_on_the_curve_and_the_slo_share_is_exact() -> None:
    rng = np.random.default_rng(0)
    samples = {"a": rng.lognormal(size=101), "b": [0.5, 0.5, 2.0, 3.0]}
    figure = figures.latency_distribution(samples, slo=0.5, percentiles=(25, 50, 99))
    curve, marks = figure.data[2:4]
    assert curve.name == "b (50% within the SLO)"
    assert list(marks.x) == [0.5, 0.5, 3.0]
    assert list(curve.x) == [0.5, 0.5, 0.5, 2.0, 3.0]
    assert list(curve.y) == [0, 0.25, 0.5, 0.75, 1]
    for percentile, value in zip((25, 50, 99), figure.data[1].x, strict=True):
        at_most = np.mean(np.asarray(samples["a"]) <= value)
        below = np.mean(np.asarray(samples["a"]) < value)
        assert below < percentile / 100 <= at_most
    assert figures.latency_distribution(samples, log_x=True).layout.xaxis.type == "log"


@pytest.mark.parametrize(
    "call",
    [
        lambda: figures.roofline({}, 1e12, []),
        lambda: figures.roofline(1e12, -1.0, []),
        lambda: figures.roofline(1e12, 1e12, [POINT._replace(seconds=0.0)]),
        lambda: figures.latency_distribution({}),
        lambda: figures.latency_distribution({"a": []}),
        lambda: figures.latency_distribution({"a": [0.0, 1.0]}, log_x=True),
        lambda: figures.latency_distribution({"a": [float("nan")]}),
        lambda: figures.latency_distribution({"a": [1.0]}, percentiles=(101,)),
    ],
)
def test_impossible_input_is_refused(call: Callable[[], Any]) -> None:
    with pytest.raises(ConfigError):
        call()
