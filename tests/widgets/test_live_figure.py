"""However a live figure got there, it looks as if it had been drawn afresh; and a change is one message."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import plotly
import plotly.graph_objects as go
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra_lab.widgets import live_figure, plotly_loader
from infra_lab.widgets.live_figure import LiveFigure
from infra_lab.widgets.theme import TEMPLATE

values = st.lists(st.one_of(st.floats(-5, 5), st.just(float("nan"))), max_size=3).map(np.array)
traces = st.fixed_dictionaries(
    {"type": st.sampled_from(["scatter", "bar"]), "y": values},
    optional={"name": st.sampled_from("ab"), "marker": st.just({"color": "red"}), "opacity": st.just(0.5), "x": values},
)
shapes = st.lists(st.fixed_dictionaries({"type": st.just("line"), "x0": st.integers(0, 3)}), max_size=2)
layouts = st.fixed_dictionaries(
    {},
    optional={
        "height": st.sampled_from([200, 300]),
        "shapes": shapes,
        "xaxis": st.fixed_dictionaries({}, optional={"title": st.just({"text": "x"}), "range": st.just([0, 1])}),
        "yaxis3": st.just({"domain": [0, 0.5]}),
    },
)
figures = st.lists(st.tuples(st.lists(traces, max_size=3), layouts), min_size=2, max_size=5)


def looks(figure: Any) -> Any:
    """What is drawn, without what plotly makes up; empty parts are as good as none."""

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            cleaned = {key: clean(item) for key, item in value.items() if key not in ("uid", "template")}
            return {key: item for key, item in cleaned.items() if item not in ({}, [])}
        if isinstance(value, (list, tuple)):
            return [clean(item) for item in value]
        return repr(value.tolist()) if isinstance(value, np.ndarray) else value

    return [clean(trace.to_plotly_json()) for trace in figure.data], clean(figure.layout.to_plotly_json())


def follows(sequence: list[tuple[Any, Any]]) -> None:
    live = LiveFigure()
    for data, layout in sequence:
        live.show(go.Figure(data, layout))
        fresh = go.Figure(data, {"autosize": True, "height": 360, **layout})
        assert looks(live.widget) == looks(fresh)
        assert looks(live.static()) == looks(fresh)


@settings(max_examples=60, deadline=None)
@given(figures)
def test_a_live_figure_equals_a_fresh_one(sequence: list[tuple[Any, Any]]) -> None:
    follows(sequence)


def test_the_comparison_notices_a_property_that_was_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    right = live_figure._changes
    monkeypatch.setattr(
        live_figure,
        "_changes",
        lambda old, new: ((path, value) for path, value in right(old, new) if value is not None),
    )
    with pytest.raises(AssertionError):
        follows([([{"type": "scatter", "name": "a"}], {}), ([{"type": "scatter"}], {})])


def messages(live: LiveFigure) -> list[str]:
    sent: list[str] = []
    names = [name for name in live.widget.trait_names() if name.startswith("_py2js_")]
    live.widget.observe(lambda change: sent.append(change.name) if change.new is not None else None, names=names)
    return sent


def test_a_change_is_one_message_and_none_without_a_change() -> None:
    live = LiveFigure()
    live.show(go.Figure([{"type": "scatter", "y": [1, 2]}, {"type": "bar", "y": [3]}], {"xaxis": {"range": [0, 1]}}))
    sent = messages(live)
    same = go.Figure([{"type": "scatter", "y": [1, 5]}, {"type": "bar", "y": [4]}], {"xaxis": {"range": [0, 2]}})
    live.show(same)
    assert sent == ["_py2js_update"]
    live.show(same)
    assert sent == ["_py2js_update"]


def test_an_unchanged_property_is_not_sent() -> None:
    live = LiveFigure()
    live.show(go.Figure([{"type": "scatter", "x": np.arange(3.0), "y": [1, 2, 3], "name": "a"}]))
    seen: list[Any] = []
    live.widget.observe(lambda change: seen.append(change.new) if change.new else None, names="_py2js_update")
    live.show(go.Figure([{"type": "scatter", "x": np.arange(3.0), "y": [1, 2, 4], "name": "a"}]))
    assert [set(message["style_data"]) for message in seen] == [{"y"}]


def test_a_reloaded_page_gets_the_present_picture() -> None:
    live = LiveFigure()
    live.show(go.Figure([{"type": "scatter", "y": [1, 2]}]))
    live.show(go.Figure([{"type": "scatter", "y": [7, 8]}]))
    state = live.widget.get_state()
    assert list(state["_widget_data"][0]["y"]) == [7, 8]


def test_every_figure_gets_the_template_that_follows_the_theme() -> None:
    live = LiveFigure()
    live.show(go.Figure([{"type": "scatter", "y": [1]}], {"template": "plotly_dark"}))
    assert live.widget.layout.template.layout.paper_bgcolor == TEMPLATE.layout.paper_bgcolor == "rgba(0, 0, 0, 0)"


def test_figures_share_one_copy_of_plotly() -> None:
    first, second = LiveFigure(), LiveFigure()
    assert first._bundle is second._bundle
    assert len(first._bundle._esm) > 1_000_000
    for live in (first, second):
        assert len(live.widget.get_state()["_esm"]) < 4_000
        assert plotly_loader._KEY in live.widget._esm
        assert plotly_loader._KEY in first._bundle._esm


def test_every_message_of_plotly_is_kept_while_it_loads() -> None:
    # A message that the loader doesn't know would be lost until plotly is there.
    names = {name for name in LiveFigure().widget.trait_names() if name.startswith("_py2js_")}
    listed = set(re.findall(r'"(\w+)"', plotly_loader.FIGURE_ESM.split("]")[0].split("[")[1]))
    assert names == {f"_py2js_{name}" for name in listed}


def test_the_reports_that_are_not_wanted_are_named_as_plotly_names_them() -> None:
    ignored = re.findall(r'"(\w+)"', plotly_loader.FIGURE_ESM.split("IGNORED = [")[1].split("]")[0])
    bundle = (Path(plotly.__file__).parent / "package_data" / "widgetbundle.js").read_text()
    assert ignored
    assert all(f'"{name}"' in bundle for name in ignored)
