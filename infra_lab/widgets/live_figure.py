"""A FigureWidget that is built once and then changed in place, one message to the browser a change."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import traitlets

from infra_lab.widgets.plotly_loader import FIGURE_ESM, share_bundle
from infra_lab.widgets.theme import TEMPLATE

_DEFAULT_HEIGHT = 360


class _PanelFigure(go.FigureWidget):  # type: ignore[misc]
    """A FigureWidget that shares plotly's bundle with the others, and whose saved state is the present picture.

    plotly keeps the state from when the figure was made and sends later changes as messages only, so that a reloaded page
    would show the first picture again.
    """

    _esm = FIGURE_ESM
    _cursor = traitlets.Float(None, allow_none=True).tag(sync=True)

    def get_state(self, key: Any = None, drop_defaults: bool = False) -> Any:
        """Return the widget's state; with the traces and the layout of now when all of it is asked for."""
        state = super().get_state(key=key, drop_defaults=drop_defaults)
        if key is None and getattr(self, "_view_count", None) is not None:
            for name, value in (("_widget_data", self._data), ("_widget_layout", self._layout_obj._props)):
                state[name] = self.trait_metadata(name, "to_json")(value, self)
        return state


class LiveFigure:
    """Holds `.widget` and makes it look like any figure it is shown.

    `show` compares the new figure with the last one. Traces of the same types in the same order: only the properties that
    differ are set. Otherwise the traces are replaced. What the reader did meanwhile (a zoom, a hidden trace) stays as long as
    the property behind it does.
    """

    def __init__(self) -> None:
        self._bundle = share_bundle()
        self.widget = _PanelFigure(layout={"template": TEMPLATE, "autosize": True, "height": _DEFAULT_HEIGHT})
        self.widget._config = {"displayModeBar": False, "responsive": True}
        self._traces: list[dict[str, Any]] = []
        self._shapes: tuple[dict[str, Any], ...] = ()
        self._layout: dict[str, Any] = {"autosize": True, "height": _DEFAULT_HEIGHT}

    def show(self, figure: Any, *, beneath: tuple[dict[str, Any], ...] = ()) -> None:
        """Show a `go.Figure`, with the traces `beneath` (dicts, as `to_plotly_json` gives them) drawn first."""
        traces = [*beneath, *(trace.to_plotly_json() for trace in figure.data)]
        layout = {"autosize": True, "height": _DEFAULT_HEIGHT, **figure.layout.to_plotly_json()}
        layout.pop("template", None)
        live = self.widget
        with live.batch_update():
            if [trace["type"] for trace in traces] == [trace["type"] for trace in self._traces]:
                for index, trace in enumerate(traces):
                    for path, value in _changes(self._traces[index], trace):
                        live.data[index][path] = value
            else:
                live.data = ()
                live.add_traces(traces)
            for path, value in _changes(self._layout, layout):
                live.layout[path] = value
        self._traces, self._layout = traces, layout

    def point_at(self, x: float | None, shapes: Sequence[dict[str, Any]] = ()) -> None:
        """Draw a line at x and a veil over what comes after it, or take them away; plotly draws nothing anew.

        shapes: the same for the static picture, as plotly's layout has them.
        """
        self.widget._cursor = x
        self._shapes = tuple(shapes)

    def static(self) -> Any:
        """Return a plain `go.Figure` of what is shown."""
        shapes = [*self._layout.get("shapes", ()), *self._shapes]
        return go.Figure(data=self._traces, layout={**self._layout, "shapes": shapes, "template": TEMPLATE})

    def refresh(self) -> None:
        """Bring the state that a new view starts from up to date; call it before the widget is displayed."""
        self.widget._repr_mimebundle_()


def _changes(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (path, value) for each property in which two figures' dicts differ; None for one that is gone."""
    for key in old.keys() | new.keys():
        if key == "uid":
            continue
        was, now = old.get(key), new.get(key)
        if isinstance(was, dict) and isinstance(now, dict):
            yield from _changes(was, now, f"{prefix}{key}.")
        elif not _equal(was, now):
            yield prefix + key, now


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        if a is None or b is None:
            return False
        a, b = np.asarray(a), np.asarray(b)
        return np.array_equal(a, b, equal_nan=a.dtype.kind == b.dtype.kind == "f")
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    return bool(a == b)
