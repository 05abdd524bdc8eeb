"""The panel on overlap: on a clock whose ticks are known, and on the host's own."""

from itertools import pairwise

import pytest

from infra_lab.clock import VirtualClock
from infra_lab.widgets.figures.overlap_timeline import overlap_timeline
from infra_lab.widgets.overlap_panel import OVERLAPPED, PLAIN, Overlapping, overlap_panel, run_both
from infra_lab.widgets.overlap_run import HAND_OUT, NOTE, NUM_FIRST, NUM_STEPS, PLAN, OverlapRun, run_steps

DEVICE_S = 1.0


class TickingClock(VirtualClock):
    """Each look at it takes a millisecond: a host whose work takes the same time on every machine."""

    def now(self) -> float:
        self.sleep(0.001)
        return super().now()


def both(device_s: float = DEVICE_S) -> tuple[OverlapRun, OverlapRun]:
    plain, overlapped = (run_steps(3, device_s, overlap=on, clock=TickingClock()) for on in (False, True))
    return plain, overlapped


def test_a_host_that_takes_no_time_has_nothing_to_hide() -> None:
    for overlap in (False, True):
        run = run_steps(3, DEVICE_S, overlap=overlap, clock=VirtualClock())
        assert run.busy_share == pytest.approx(1.0)
        assert run.host_s(HAND_OUT) == 0.0
        assert len(run.device) == NUM_STEPS - NUM_FIRST


@pytest.mark.parametrize("overlap", [False, True])
def test_everybody_does_one_thing_at_a_time(overlap: bool) -> None:
    run = run_steps(3, DEVICE_S, overlap=overlap, clock=TickingClock())
    for lane in (run.host, run.device):
        assert all(piece.start_s <= piece.end_s for piece in lane)
        assert all(piece.end_s <= later.start_s + 1e-9 for piece, later in pairwise(lane))
    assert [piece.what for piece in run.host[:3]] == [PLAN, NOTE, HAND_OUT]


def test_what_the_device_waits_for() -> None:
    """All of the host's work without overlap; with it, no more than noting the tokens and launching the next step."""
    plain, overlapped = both()
    assert plain.busy_share < overlapped.busy_share < 1
    for run in (plain, overlapped):
        for piece in run.host[:-1]:  # no step comes after the last text
            is_during = any(
                computes.start_s <= piece.start_s and piece.end_s <= computes.end_s + 1e-9 for computes in run.device
            )
            assert is_during == (run is overlapped and piece.what != NOTE)
    assert 0 < overlapped.step_s - DEVICE_S <= overlapped.host_s(NOTE)
    assert plain.step_s - DEVICE_S >= sum(plain.host_s(what) for what in (PLAN, NOTE, HAND_OUT))


def test_a_device_that_is_faster_than_the_host() -> None:
    plain, overlapped = both(device_s=0.005)
    host_s = sum(overlapped.host_s(what) for what in (PLAN, NOTE, HAND_OUT))
    assert host_s <= overlapped.step_s < plain.step_s
    assert overlapped.busy_share < 0.6, "the device waits for the host"


def test_the_figure_says_what_the_runs_are() -> None:
    plain, overlapped = both()
    figure = overlap_timeline({PLAIN: plain, OVERLAPPED: overlapped})
    (computes,) = (trace for trace in figure.data if trace.name == "computes")
    starts = [x for x, lane in zip(computes.x[::3], computes.y[::3], strict=True) if lane == 0]
    assert starts == pytest.approx([1e3 * plain.step_s * step for step in range(4)])
    assert set(computes.y) - {None} == {0, 2}
    assert figure.layout.yaxis.ticktext[::2] == (f"device, {PLAIN}", f"device, {OVERLAPPED}")
    assert computes.x[1] - computes.x[0] == pytest.approx(1e3 * DEVICE_S)
    assert [note.text for note in figure.layout.annotations] == [
        f"{run.busy_share:.0%} busy" for run in (plain, overlapped)
    ]


def test_on_the_hosts_own_clock() -> None:
    runs = run_both(Overlapping(requests=4, device_ms=1.0))
    assert runs[PLAIN].busy_share < runs[OVERLAPPED].busy_share <= 1
    assert all(runs[way].host_s(what) > 0 for way in runs for what in (PLAN, NOTE, HAND_OUT))


def test_the_panel() -> None:
    panel = overlap_panel()
    panel.set(requests=1, device_ms=20.0)
    assert panel.result[OVERLAPPED].device_s == 0.02
    assert f"with overlap {panel.result[OVERLAPPED].busy_share:.0%}" in panel.summary
