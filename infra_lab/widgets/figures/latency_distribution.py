"""Latencies as cumulative distributions: what share of the requests took at most so long."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from infra_lab.errors import ConfigError
from infra_lab.widgets import theme

_DASHES = ("solid", "dash", "dot", "dashdot")
_SYMBOLS = ("circle", "square", "diamond", "triangle-up")


def latency_distribution(
    samples: Mapping[str, Sequence[float]],
    *,
    unit: str = "s",
    percentiles: Sequence[float] = (50, 95, 99),
    slo: float | None = None,
    log_x: bool = False,
) -> Any:
    """Return the empirical distribution of each named series, with its percentiles marked.

    A percentile is the smallest sample that so many per cent of them do not exceed. With `slo`, a vertical line stands at
    it and the legend says what share of each series keeps it. Raises ConfigError for an empty series, for values that are
    not finite or, with `log_x`, not positive, and for percentiles outside 0 to 100.
    """
    if not samples or not all(len(values) for values in samples.values()):
        raise ConfigError("latency_distribution needs at least one sample in each series; leave empty series out")
    if not all(0 <= percentile <= 100 for percentile in percentiles):
        raise ConfigError(f"percentiles are {tuple(percentiles)}; each must be from 0 to 100")
    data: list[dict[str, Any]] = []
    for index, (name, values) in enumerate(samples.items()):
        x = np.sort(np.asarray(values, np.float64))
        if not np.isfinite(x).all() or (log_x and x[0] <= 0):
            raise ConfigError(
                f"series {name!r} holds {x[0]:g} to {x[-1]:g}; values must be finite, and positive for log_x"
            )
        kept = "" if slo is None else f" ({(x <= slo).mean():.0%} within the SLO)"
        data += [_curve(index, f"{name}{kept}", x, unit), _marks(index, name, x, unit, percentiles)]
    limit = [] if slo is None else [slo, slo]
    data.append(
        {
            "type": "scatter",
            "mode": "lines",
            "name": f"SLO {slo:g} {unit}" if slo is not None else "SLO",
            "x": limit,
            "y": [0, 1][: len(limit)],
            "line": {"color": theme.PREEMPTED, "width": 2, "dash": "longdash"},
            "showlegend": slo is not None,
            "hovertemplate": "SLO %{x:.4~g} " + unit + "<extra></extra>",
        }
    )
    x_axis = {"title": {"text": f"latency ({unit})"}, "type": "log" if log_x else "linear"}
    y_axis = {"title": {"text": "share of requests"}, "range": [0, 1.02], "tickformat": ".0%"}
    return go.Figure(
        data, {"template": theme.TEMPLATE, "height": 340, "showlegend": True, "xaxis": x_axis, "yaxis": y_axis}
    )


def _curve(index: int, name: str, x: Any, unit: str) -> dict[str, Any]:
    # From 0 at the smallest sample, up by 1/n at each one.
    y = np.arange(len(x) + 1) / len(x)
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": np.concatenate([x[:1], x]),
        "y": y,
        "line": {
            "shape": "hv",
            "width": 2,
            "color": theme.PALETTE[index % len(theme.PALETTE)],
            "dash": _DASHES[index // len(theme.PALETTE) % len(_DASHES)],
        },
        "hovertemplate": f"{name}<br>%{{y:.1%}} took at most %{{x:.4~g}} {unit}<extra></extra>",
    }


def _marks(index: int, name: str, x: Any, unit: str, percentiles: Sequence[float]) -> dict[str, Any]:
    values = np.percentile(x, percentiles, method="inverted_cdf") if len(percentiles) else np.array([])
    return {
        "type": "scatter",
        "mode": "markers+text",
        "name": name,
        "x": values,
        "y": np.asarray(percentiles, np.float64) / 100,
        "text": [f"p{percentile:g}" for percentile in percentiles],
        "textposition": "middle right",
        "textfont": {"size": 10, "color": theme.INK},
        "marker": {
            "size": 8,
            "color": theme.PALETTE[index % len(theme.PALETTE)],
            "symbol": _SYMBOLS[index % len(_SYMBOLS)],
            "line": {"width": 1, "color": theme.SURFACE},
        },
        "showlegend": False,
        "hovertemplate": f"{name} %{{text}}: %{{x:.4~g}} {unit}<extra></extra>",
    }
