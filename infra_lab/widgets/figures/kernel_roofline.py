"""Where a launch stands under the roofs of memory, L2 cache and arithmetic (a hierarchical roofline; Yang et al. 2020)."""

from typing import Any

import plotly.graph_objects as go

from infra_lab.widgets import theme
from infra_lab.widgets.figures.parts import si
from infra_lab.widgets.figures.roofline import log_axis
from kernels.chips import Chip
from kernels.predict import Prediction
from kernels.work import Work

_MOST_AGAIN = 40
"""How much more than the least a launch may load before the axis has to widen for it."""


def kernel_roofline(work: Work, prediction: Prediction, chip: Chip) -> Any:
    """Return a log-log figure: the least cost under the roof of memory, and the predicted launch under that of the cache.

    The launch counts the operations that are asked for, not those on padding, over the bytes that its programs load and store.
    So it stands to the left of the least cost, by as much as it reads again. A kernel without arithmetic has no points.
    """
    peak, memory, cache = chip.flops.get(work.unit, chip.flops["fp32"]), chip.memory_bytes_per_s, chip.l2_bytes_per_s
    least = work.cost.intensity or 1.0
    seconds, traffic = prediction.seconds, prediction.traffic
    shown = traffic is not None and seconds and work.cost.flops
    launch = work.cost.flops / traffic.num_bytes if shown and traffic else least
    left = min(least / _MOST_AGAIN, peak / cache / 8, launch / 2)
    right = 5 * max(least, peak / memory)
    strip = (peak / (left * memory / 3)) ** 0.3  # above the roof, for the names of the lines
    at = [left * (right / left) ** share for share in (0.03, 0.36, 0.69)]
    traces = [
        _line([left, peak / cache], [left * cache, peak], theme.GREEN),
        _line([left, peak / memory], [left * memory, peak], theme.MEMORY_BOUND),
        _line([peak / cache, right], [peak, peak], theme.COMPUTE_BOUND),
        _key(f"L2 cache {si(cache, 'B/s')}", at[0], peak * strip**0.6, theme.GREEN),
        _key(f"memory {si(memory, 'B/s')}", at[1], peak * strip**0.6, theme.MEMORY_BOUND),
        _key(f"{work.unit} {si(peak, 'FLOP/s')}", at[2], peak * strip**0.6, theme.COMPUTE_BOUND),
        _point("least cost", least, min(least * memory, peak), "bottom right", is_there=work.cost.flops > 0),
        _point("this config", launch, work.cost.flops / (seconds or 1.0), "top left", is_there=bool(shown)),
    ]
    title = (
        "FLOP per byte that is loaded or stored" if work.cost.flops else "it computes nothing, so it has no place here"
    )
    layout = {
        "template": theme.TEMPLATE,
        "height": 300,
        "margin": {"t": 8, "b": 48, "l": 72, "r": 24},
        "xaxis": {**log_axis(left, right), "title": {"text": title}, "tickformat": "~g"},
        "yaxis": {**log_axis(left * memory / 3, peak * strip), "title": {"text": "FLOP/s"}, "tickformat": "~s"},
    }
    return go.Figure(traces, layout)


def _line(x: list[float], y: list[float], colour: str) -> dict[str, Any]:
    line = {"color": colour, "width": 3}
    return {"type": "scatter", "mode": "lines", "x": x, "y": y, "line": line, "showlegend": False, "hoverinfo": "skip"}


def _key(text: str, x: float, y: float, colour: str) -> dict[str, Any]:
    """A line's name, beside a piece of it: a legend of the figure's would stand above both plots."""
    return {
        "type": "scatter",
        "mode": "markers+text",
        "x": [x],
        "y": [y],
        "text": [f"  {text}"],
        "textposition": "middle right",
        "textfont": {"size": 11, "color": theme.INK},
        "marker": {"symbol": "square", "size": 9, "color": colour},
        "showlegend": False,
        "hoverinfo": "skip",
    }


def _point(name: str, x: float, y: float, position: str, *, is_there: bool) -> dict[str, Any]:
    is_launch = name == "this config"
    return {
        "type": "scatter",
        "name": name,
        "mode": "markers+text",
        "x": [x] if is_there else [],
        "y": [y] if is_there else [],
        "text": [name] if is_there else [],
        "textposition": position,
        "textfont": {"size": 12, "color": theme.INK},
        "marker": {
            "size": 11 if is_launch else 15,
            "symbol": "circle" if is_launch else "diamond-open",
            "color": theme.BLUE if is_launch else theme.INK,
            "line": {"width": 2, "color": theme.SURFACE if is_launch else theme.INK},
        },
        "customdata": [f"{x:.3g} FLOP/byte, {si(y, 'FLOP/s')}"] if is_there else [],
        "hovertemplate": "%{text}<br>%{customdata}<extra></extra>",
        "showlegend": False,
    }
