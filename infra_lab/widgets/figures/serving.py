"""A server under load: how long the first event takes, how far events lie apart, who runs and waits, how full the KV is."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from infra_lab.widgets import theme
from infra_lab.widgets.serving_traffic import ServingSnapshot

_EDGES_S = np.geomspace(1e-4, 20.0, 49)
"""Of the histograms' bins; fixed, so that a bar stays where it is while the load changes."""


def serving(snapshot: ServingSnapshot) -> Any:
    """Return two histograms (TTFT and gaps, in ms on logarithmic axes) above the gauges over time."""
    # Lists: in a FigureWidget that changes while the browser draws, plotly 7 stumbles over arrays.
    times = [gauge.time_s - snapshot.gauges[-1].time_s for gauge in snapshot.gauges]
    data = [
        _histogram("time to first event", snapshot.ttft_s, theme.PREFILL, ""),
        _histogram("between two events", snapshot.itl_s, theme.DECODE, "2"),
        _line("running", times, [gauge.running for gauge in snapshot.gauges], theme.SHARED, "3", "solid"),
        _line("waiting", times, [gauge.waiting for gauge in snapshot.gauges], theme.PREEMPTED, "3", "dot"),
        _line("KV in use", times, [100 * gauge.kv_usage for gauge in snapshot.gauges], theme.USED, "4", "solid"),
    ]
    log = {"type": "log", "range": [-1, 4.3], "dtick": 1}
    layout = {
        "template": theme.TEMPLATE,
        "height": 430,
        "xaxis": {"title": {"text": "ms to the first event"}, "domain": [0.0, 0.46], "anchor": "y", **log},
        "xaxis2": {"title": {"text": "ms between two events"}, "domain": [0.54, 1.0], "anchor": "y2", **log},
        "xaxis3": {"title": {"text": "seconds before now"}, "domain": [0.0, 0.46], "anchor": "y3", "range": [-20, 0]},
        "xaxis4": {"title": {"text": "seconds before now"}, "domain": [0.54, 1.0], "anchor": "y4", "range": [-20, 0]},
        "yaxis": {"title": {"text": "requests"}, "domain": [0.62, 1.0], "anchor": "x", "rangemode": "tozero"},
        "yaxis2": {"title": {"text": "events"}, "domain": [0.62, 1.0], "anchor": "x2", "rangemode": "tozero"},
        "yaxis3": {"title": {"text": "requests"}, "domain": [0.0, 0.36], "anchor": "x3", "rangemode": "tozero"},
        "yaxis4": {"title": {"text": "% of blocks"}, "domain": [0.0, 0.36], "anchor": "x4", "range": [0, 100]},
    }
    return go.Figure(data, layout)


def _histogram(name: str, seconds: Sequence[float], colour: str, axis: str) -> dict[str, Any]:
    counts, _ = np.histogram(np.clip(seconds, _EDGES_S[0], _EDGES_S[-1]), _EDGES_S)
    return {
        "type": "scatter",
        "name": name,
        "mode": "lines",
        "x": (_EDGES_S * 1e3).tolist(),
        "y": [*counts.tolist(), 0],
        "xaxis": f"x{axis}",
        "yaxis": f"y{axis}",
        "line": {"shape": "hv", "width": 2, "color": colour},
        "fill": "tozeroy",
        "fillcolor": theme.with_alpha(colour, 0.35),
        "hovertemplate": f"from %{{x:.3~g}} ms: %{{y}}<extra>{name}</extra>",
    }


def _line(
    name: str, times: Sequence[float], values: Sequence[float], colour: str, axis: str, dash: str
) -> dict[str, Any]:
    return {
        "type": "scatter",
        "name": name,
        "mode": "lines",
        "x": times,
        "y": list(values),
        "xaxis": f"x{axis}",
        "yaxis": f"y{axis}",
        "line": {"width": 2, "color": colour, "dash": dash},
        "hovertemplate": f"%{{x:.1f}} s: %{{y:.3~g}}<extra>{name}</extra>",
    }
