"""A slow panel: progress, Stop, and of many changes only the newest counts."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
import pytest

from infra_lab.errors import ConfigError
from infra_lab.widgets import LiveTuner, knob, latest_wins
from infra_lab.widgets.latest_wins import LatestWins, Ticket

LONG_S = 30.0


@dataclass(frozen=True)
class Params:
    count: int = knob(1, low=0, high=99)


class Gate:
    """A computation that stands still at each `progress` until it is let on."""

    def __init__(self) -> None:
        self.started: list[int] = []
        self.entered, self.go_on = threading.Semaphore(0), threading.Semaphore(0)

    def compute(self, params: Params, progress: Callable[..., None]) -> int:
        self.started.append(params.count)
        self.entered.release()
        self.go_on.acquire(timeout=LONG_S)
        progress(0.5, "half")
        if params.count == 13:
            raise ConfigError("count is 13; choose another")
        return params.count

    def wait_until_in(self) -> None:
        assert self.entered.acquire(timeout=LONG_S)


def draw(result: int) -> Any:
    return go.Figure([{"type": "bar", "y": [result]}])


def settled_panel() -> tuple[LiveTuner[Params, int], Gate]:
    gate = Gate()
    panel = LiveTuner(Params, gate.compute, draw, summarize=str, slow=True)
    gate.wait_until_in()
    gate.go_on.release()
    panel.wait(LONG_S)
    return panel, gate


def test_it_computes_on_a_thread_and_wait_returns_when_it_is_shown() -> None:
    panel, gate = settled_panel()
    assert (panel.result, panel.summary, list(panel.figure.data[0].y)) == (1, "1", [1])
    assert panel._progress.row.layout.display == "none"
    panel.controls["count"].value = 4
    gate.wait_until_in()
    assert panel.result == 1, "the panel must not wait for a slow computation"
    assert panel._progress.row.layout.display == ""
    gate.go_on.release()
    panel.wait(LONG_S)
    assert (panel.result, panel.params) == (4, Params(4))
    assert panel._progress.note.text == "half"


def test_of_many_changes_only_the_newest_is_computed() -> None:
    panel, gate = settled_panel()
    panel.set(count=2)
    gate.wait_until_in()
    for count in range(3, 40):
        panel.set(count=count)
    gate.go_on.release()  # the 2 is asked to end, at its progress
    gate.wait_until_in()
    gate.go_on.release()
    panel.wait(LONG_S)
    assert gate.started == [1, 2, 39]
    assert panel.result == 39


def test_stop_ends_the_computation_and_leaves_the_figure() -> None:
    panel, gate = settled_panel()
    panel.set(count=5)
    gate.wait_until_in()
    panel._progress.stop_button.click()
    gate.go_on.release()
    panel.wait(LONG_S)
    assert (panel.result, list(panel.figure.data[0].y)) == (1, [1])
    assert panel._progress.row.layout.display == "none"
    panel.set(count=6)
    gate.wait_until_in()
    gate.go_on.release()
    panel.wait(LONG_S)
    assert panel.result == 6


def test_an_error_shows_and_wait_raises_it() -> None:
    panel, gate = settled_panel()
    panel.set(count=13)
    gate.wait_until_in()
    gate.go_on.release()
    with pytest.raises(ConfigError, match="count is 13"):
        panel.wait(LONG_S)
    assert panel._message.text == "count is 13; choose another"
    assert panel.result == 1


def test_wait_gives_up_after_its_time() -> None:
    panel, gate = settled_panel()
    panel.set(count=5)
    gate.wait_until_in()
    with pytest.raises(TimeoutError, match=r"after 0\.01 s"):
        panel.wait(0.01)
    gate.go_on.release()
    panel.wait(LONG_S)


def started_of_two_changes() -> list[int]:
    gate = Gate()
    done: list[int] = []

    def work(job: int, ticket: Ticket) -> None:
        gate.compute(Params(job), lambda *_: ticket.check())
        done.append(job)

    worker = LatestWins(work, lambda: None)
    worker.submit(1)
    gate.wait_until_in()
    worker.submit(2)
    gate.go_on.release(2)
    worker.wait(LONG_S)
    return done


def test_a_cancelled_job_does_not_finish() -> None:
    assert started_of_two_changes() == [2]


def test_that_notices_a_ticket_that_never_cancels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latest_wins.Ticket, "check", lambda self: None)
    assert started_of_two_changes() == [1, 2]
