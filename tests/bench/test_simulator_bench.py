"""The simulator's bench: rows of both levels and of the engine beside it. No figure of speed is judged."""

import pytest

from infra_lab.bench import simulator
from infra_lab.bench.fidelity import Comparison, Fidelity, Latencies, Setting, measure_fidelity, median_error
from infra_lab.data import data_path
from infra_lab.simulator.calibrate import Calibration
from infra_lab.simulator.cost import LinearStepCost

SETTING = Setting("chunked-prefill", 4, 64, 0.5)


def test_speed_rows_count_what_was_simulated() -> None:
    step_level = simulator._step_level(data_path("workloads/chat_sessions.yaml"), repeats=1)
    assert step_level.value > 0
    assert step_level.peer_value == 200_000
    cluster = simulator._cluster(2_000)
    assert cluster.value > 0
    assert cluster.peer_value == pytest.approx(120 * 2_000 / 1_000_000)


def test_levels_agree_with_ample_memory_and_differ_where_it_is_short() -> None:
    ample, short = simulator.level_rows(200)[:4], simulator.level_rows(200)[4:]
    assert [row.name for row in ample] == [f"{x}, ample KV" for x in ("TTFT p50", "TTFT p99", "TPOT p50", "TPOT p99")]
    assert [row.ratio for row in ample] == pytest.approx([1.0] * 4, rel=1e-6)
    assert any(abs(row.ratio - 1) > 1e-3 for row in short)


def test_fidelity_runs_the_engine_and_its_simulation() -> None:
    fidelity = measure_fidelity("tiny", [Setting("chunked-prefill", 2, 64, 0.5)], num_requests=2, repeats=2)
    (comparison,) = fidelity.comparisons
    assert len(comparison.real) == len(comparison.simulated) == 2
    assert min(*comparison.mean, *comparison.simulated_mean) > 0
    assert fidelity.calibration.num_steps > 50


def test_the_error_is_the_median_of_absolute_ones() -> None:
    comparisons = [
        Comparison(SETTING, [Latencies(1.0, 0.1), Latencies(4.0, 0.1)], [Latencies(x, 0.1), Latencies(4 * x, 0.1)])
        for x in (0.5, 1.1, 1.02)
    ]
    assert comparisons[0].mean == pytest.approx((2.0, 0.1))
    assert median_error(c.errors[0] for c in comparisons) == pytest.approx(0.1)
    fidelity = Fidelity(comparisons, Calibration(LinearStepCost(), 99, 0.2, 0.0), 7)
    ttft, tpot, *settings = simulator.fidelity_rows("tiny", fidelity)
    assert (ttft.value, ttft.is_reached) == (pytest.approx(10.0), False)
    assert (tpot.value, tpot.is_reached) == (0.0, True)
    assert [row.ratio for row in settings[::2]] == pytest.approx([0.5, 1.1, 1.02])
