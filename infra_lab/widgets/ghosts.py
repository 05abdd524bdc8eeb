"""A pinned run: the traces of an earlier figure, pale and dashed, to be drawn under the live ones."""

from typing import Any

_OPACITY = 0.38


def ghosts_of(figure: Any) -> tuple[dict[str, Any], ...]:
    """Return pale copies of a figure's line, marker and bar traces.

    A figure with a heatmap has none: two heatmaps on one another cannot be told apart, and the summaries stand side by side
    anyway.
    """
    traces = [trace.to_plotly_json() for trace in figure.data]
    if any(trace["type"] not in ("scatter", "bar") for trace in traces):
        return ()
    return tuple(_ghost(trace) for trace in traces)


def _ghost(trace: dict[str, Any]) -> dict[str, Any]:
    pale: dict[str, Any] = {**trace, "opacity": _OPACITY, "name": f"pinned: {trace.get('name') or 'run'}"}
    for key in ("uid", "fill", "fillcolor", "legendgroup"):
        pale.pop(key, None)
    if trace["type"] == "scatter":
        pale["line"] = {**trace.get("line", {}), "dash": "dash"}
    else:
        pale["offsetgroup"] = "pinned"
    return pale
