"""The suite `widgets`: how changes are summed up, and its own panel."""

import pytest

from infra_lab.bench.scheduler_panel import NUM_REQUESTS, Limits, run_requests, scheduler_panel
from infra_lab.bench.slider_latency import Change
from infra_lab.bench.widgets import latency_rows


def test_percentiles_of_the_settled_figure_and_the_kernels_share() -> None:
    changes = [Change(first_ms=ms - 1.0, settled_ms=ms, kernel_ms=ms / 4) for ms in map(float, range(1, 102))]
    p50, p95, kernel = latency_rows("4.2", "Where does the KV memory go?", changes)
    assert [row.name for row in (p50, p95, kernel)] == [
        f"4.2 Where does th…, {end}" for end in ("p50", "p95", "kernel")
    ]
    assert p95.note.startswith("Where does the KV memory go?: 101 changes")
    assert (p50.value, p95.value) == (51.0, 96.0)
    assert (p50.is_reached, p95.is_reached) == (True, True)
    assert (kernel.value, kernel.ratio, kernel.is_reached) == (12.75, 0.25, None)


def test_a_slow_panel_misses_what_was_asked_for() -> None:
    rows = latency_rows("0", "A panel", [Change(90.0, 90.0, 1.0)] * 90 + [Change(90.0, 130.0, 1.0)] * 10)
    assert [row.is_reached for row in rows[:2]] == [True, False]


@pytest.mark.parametrize(
    "limits", [Limits(max_batched_tokens=32, num_kv_blocks=32), Limits(max_batched_tokens=256, num_kv_blocks=128)]
)
def test_the_benchs_panel_runs_every_request_to_its_end(limits: Limits) -> None:
    steps = run_requests(limits)
    assert len({ending.request_id for step in steps for ending in step.finished}) == NUM_REQUESTS
    assert all(
        step.num_tokens <= limits.max_batched_tokens and step.total_blocks == limits.num_kv_blocks for step in steps
    )


def test_the_benchs_panel_follows_its_sliders() -> None:
    panel = scheduler_panel()
    before = len(panel.result)
    panel.controls["max_batched_tokens"].value = 32
    assert len(panel.result) > before, "a smaller budget needs more steps"
