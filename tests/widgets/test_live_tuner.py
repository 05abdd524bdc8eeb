"""A panel without a browser: a control's value changes, and result, figure and texts follow."""

import base64
import io
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
import pytest
from PIL import Image

from infra_lab.errors import ConfigError
from infra_lab.widgets import LiveTuner, knob


@dataclass(frozen=True)
class Params:
    count: int = knob(3, low=1, high=9, label="Count", unit="tokens", help="How many")
    scale: float = knob(1.0, low=0.1, high=10.0, log=True, label="Scale")
    size: int = knob(4, choices=(1, 2, 4, 8), label="Size")
    is_on: bool = knob(True, label="On")
    kind: str = knob("line", choices=("line", "bar"), label="Kind")
    hidden: str = "not a knob"


calls: list[Params] = []


def compute(params: Params) -> Params:
    calls.append(params)
    if params.count == 7:
        raise ConfigError("count is 7; the pool has room for 6: lower it")
    if params.count == 8:
        raise ZeroDivisionError("by <zero>")
    return params


def draw(params: Params) -> Any:
    trace = {"type": "scatter" if params.kind == "line" else "bar", "name": "run", "y": [params.scale] * params.count}
    return go.Figure([trace], {"height": 240})


def summarize(params: Params) -> str:
    return f"{params.count} values of {params.scale:g} <b>."


def panel(**options: Any) -> LiveTuner[Params, Params]:
    calls.clear()
    return LiveTuner(Params, compute, draw, summarize=summarize, title="A <title>", **options)


def test_it_shows_the_defaults_at_once() -> None:
    made = panel()
    assert made.params == Params()
    assert made.result == Params()
    assert list(made.figure.data[0].y) == [1.0] * 3
    assert made.summary == "3 values of 1 <b>."
    assert list(made.controls) == ["count", "scale", "size", "is_on", "kind"]


def test_a_control_that_moves_computes_in_the_same_breath_and_keeps_the_figure() -> None:
    made = panel()
    figure, trace = made.figure, made.figure.data[0]
    made.controls["count"].value = 5
    assert list(made.figure.data[0].y) == [1.0] * 5
    assert made.figure is figure
    assert made.figure.data[0] is trace
    assert made.params.count == 5
    assert len(calls) == 2
    made.controls["kind"].value = "bar"
    assert made.figure.data[0].type == "bar"
    assert made.figure is figure


def test_set_turns_several_knobs_with_one_computation_and_reset_turns_them_back() -> None:
    made = panel()
    made.set(count=2, scale=0.5, size=8, is_on=False, kind="bar")
    assert made.params == Params(2, 0.5, 8, False, "bar")
    assert len(calls) == 2
    made.reset()
    assert made.params == Params()
    assert len(calls) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nothing": 1}, "there is no knob 'nothing'"),
        ({"count": 10}, "count is 10; it must be from 1 to 9"),
        ({"count": 2.5}, "count is 2.5; it must be a finite int"),
        ({"count": True}, "count is True"),
        ({"size": 3}, "size is 3; choose one of 1, 2, 4, 8"),
        ({"is_on": 1}, "is_on is 1; it must be True or False"),
    ],
)
def test_set_refuses_what_no_knob_can_be_with_nothing_changed(changes: dict[str, Any], message: str) -> None:
    made = panel()
    with pytest.raises(ConfigError, match=message):
        made.set(**{"scale": 2.0, **changes})
    assert made.params == Params()
    assert made.controls["scale"].value == 1.0
    assert len(calls) == 1


def test_presets_set_all_knobs() -> None:
    made = panel(presets={"Small": Params(count=1), "Bars": Params(kind="bar")})
    made.set(scale=5.0)
    made._buttons["Small"].click()
    assert made.params == Params(count=1)
    made._buttons["Bars"].click()
    assert made.params == Params(kind="bar")
    with pytest.raises(ConfigError, match=r"preset 'Huge': count is 99"):
        panel(presets={"Huge": Params(count=99)})
    with pytest.raises(ConfigError, match=r"preset 'Odd' is a int"):
        panel(presets={"Odd": 3})


def test_an_error_shows_in_the_panel_and_the_figure_stays() -> None:
    made = panel()
    made.controls["count"].value = 7
    assert made._message.text == "count is 7; the pool has room for 6: lower it"
    assert made.params.count == 3
    assert len(made.figure.data[0].y) == 3
    assert isinstance(made.error, ConfigError)
    made.controls["count"].value = 8
    assert made._message.text == "ZeroDivisionError: by <zero>"
    made.controls["count"].value = 6
    assert made._message.text == ""
    assert made.error is None
    with pytest.raises(ZeroDivisionError):
        made.set(count=8)


@pytest.mark.parametrize("part", ["draw", "summarize"])
def test_an_error_in_drawing_or_summarizing_changes_nothing_either(part: str) -> None:
    def fails(result: Params) -> Any:
        if result.count > 3:
            raise ConfigError("too many to draw")
        return draw(result) if part == "draw" else "fine"

    made = LiveTuner(Params, compute, fails if part == "draw" else draw, summarize=fails if part != "draw" else None)
    with pytest.raises(ConfigError, match="too many"):
        made.set(count=4)
    assert (made.params, made.result, len(made.figure.data[0].y)) == (Params(), Params(), 3)


def test_defaults_that_fail_are_the_authors_error() -> None:
    @dataclass(frozen=True)
    class Bad:
        count: int = knob(7, low=1, high=9)

    with pytest.raises(ConfigError, match="count is 7; the pool"):
        LiveTuner(Bad, compute, draw)


def test_pin_keeps_a_pale_copy_below_and_both_summaries() -> None:
    made = panel()
    made.pin()
    made.set(count=5, scale=2.0)
    ghost, live = made.figure.data
    assert (ghost.name, ghost.line.dash, list(ghost.y)) == ("pinned: run", "dash", [1.0] * 3)
    assert ghost.opacity < 0.5
    assert (live.name, list(live.y)) == ("run", [2.0] * 5)
    assert made._pinned_summary.text.startswith("Pinned: Count 3 tokens, Scale 1, Size 4, On True, Kind line. 3 values")
    assert made.summary.startswith("5 values")
    made.unpin()
    assert len(made.figure.data) == 1
    assert made._pinned_summary.text == ""
    made.unpin()


def test_a_pinned_heatmap_leaves_its_summary_only() -> None:
    def heat(params: Params) -> Any:
        return go.Figure([{"type": "heatmap", "z": [[params.count]]}])

    made = LiveTuner(Params, compute, heat, summarize=summarize)
    made.pin()
    made.set(count=4)
    assert len(made.figure.data) == 1
    assert "3 values" in made._pinned_summary.text


def test_listeners_hear_of_every_result() -> None:
    made, heard = panel(), []
    made.on_result(heard.append)
    made.set(count=4)
    made.controls["count"].value = 7
    assert [params.count for params in heard] == [3, 4]


def test_a_notebook_gets_the_live_view_a_picture_and_the_text() -> None:
    made = panel()
    made.set(count=5)
    data = made._repr_mimebundle_()
    assert data["application/vnd.jupyter.widget-view+json"]["model_id"] == made.widget.model_id
    picture = Image.open(io.BytesIO(base64.b64decode(data["image/png"])))
    assert (picture.format, picture.size) == ("PNG", (900, 240))
    assert data["text/plain"] == ("A <title>\nCount 5 tokens, Scale 1, Size 4, On True, Kind line\n5 values of 1 <b>.")


def test_the_title_is_escaped_and_the_texts_are_live_regions() -> None:
    made = panel()
    title = made.widget.children[1].value
    assert "<h4" in title
    assert "A &lt;title&gt;" in title
    assert "<title>" not in title
    assert "aria-live" in str(made._summary._esm)
    assert "textContent" in str(made._summary._esm)
    assert "innerHTML" not in str(made._summary._esm)
