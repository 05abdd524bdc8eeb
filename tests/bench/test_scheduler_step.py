"""That the benchmark of the scheduler's step measures the steps that it says; no times are judged here."""

import pytest

from infra_lab.bench import scheduler_step
from infra_lab.bench.scheduler_step import measure_scheduler_step, sample
from infra_lab.errors import ConfigError


def test_one_row_a_kind_and_size() -> None:
    rows = measure_scheduler_step((4, 8), num_steps=6)
    assert [(row.kind, row.num_running) for row in rows] == [
        (kind, size) for kind in ("decode", "prefill", "turnover") for size in (4, 8)
    ]
    for row in rows:
        assert 0 < row.p50_ms <= row.p95_ms
        assert row.schedule_p50_ms > 0
        assert row.update_p50_ms > 0
    assert [row.ratio_to_linear for row in rows[::2]] == [1.0] * 3


def test_the_steps_are_what_they_are_called() -> None:
    load = scheduler_step._Load(200)
    for step in range(30):
        kind = step // 10
        if kind == 1:
            load.keep_a_prompt_coming()
        elif kind == 2:
            load.turn_over()
        plan = load.scheduler.schedule()
        ended = load.scheduler.update(plan, sample(plan))
        sizes = sorted(chunk.num_tokens for chunk in plan.chunks)
        if kind == 0:
            assert sizes == [1] * 200
        elif kind == 1:
            assert sizes[:200] == [1] * 200
            assert sizes[200:] == [128]
        elif step > 21:  # the last long prompt is through
            assert sizes == [1] * 200 + [64] * 8
            assert len(ended) == 8
        assert not plan.preempted
    assert load.scheduler.blocks.stats.hit_tokens == 0


def test_nobody_is_preempted_in_the_longest_run() -> None:
    load = scheduler_step._Load(16)
    for _ in range(scheduler_step.MAX_STEPS):
        load.keep_a_prompt_coming()
        plan = load.scheduler.schedule()
        assert not plan.preempted
        load.scheduler.update(plan, sample(plan))


@pytest.mark.parametrize(
    ("sizes", "num_steps", "message"),
    [((4,), 1, "num_steps is 1"), ((4,), 513, "num_steps is 513"), ((), 9, r"\[\]"), ((4, 0), 9, r"\[4, 0\]")],
)
def test_what_cannot_be_measured(sizes: tuple[int, ...], num_steps: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        measure_scheduler_step(sizes, num_steps=num_steps)
