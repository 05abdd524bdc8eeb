"""What each step of one request took, above the time that reading the weights once takes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from infra_lab.engine.recorder import StepRecord
from infra_lab.widgets import theme


def step_times(steps: Sequence[StepRecord], floor_s: float) -> Any:
    """Return a figure of what each step took, oldest first, above a line at the time that reading the weights once takes.

    A bar is the model (prompt or token) and, on top of it, the engine around the model: scheduling, sampling, text.
    """
    x = np.arange(len(steps), dtype=np.float64)
    model = np.array([step.timings_s.get("forward", 0.0) for step in steps]) * 1e3
    around = np.array([step.duration_s for step in steps]) * 1e3 - model
    is_decode = np.array([step.num_tokens == step.num_decodes for step in steps], dtype=bool)
    words = [f"{step.num_tokens} token{'s' * (step.num_tokens != 1)} computed" for step in steps]
    series = [
        ("model: prompt", theme.PREFILL, x[~is_decode], model[~is_decode]),
        ("model: next token", theme.DECODE, x[is_decode], model[is_decode]),
        ("engine around it", theme.MUTED, x, around),
    ]
    data: list[dict[str, Any]] = [
        {
            "type": "bar",
            "name": name,
            "x": place,
            "y": height,
            "marker": {"color": colour},
            "customdata": [words[int(i)] for i in place],
            "hovertemplate": f"step %{{x}}: %{{customdata}}<br>{name}: %{{y:.3~g}} ms<extra></extra>",
            "showlegend": bool(len(place)),
        }
        for name, colour, place, height in series
    ]
    edge = [-0.5, len(steps) - 0.5] if steps else []
    data.append(
        {
            "type": "scatter",
            "mode": "lines",
            "name": "reading all weights once, at full bandwidth",
            "x": edge,
            "y": [floor_s * 1e3] * len(edge),
            "line": {"color": theme.INK, "width": 2, "dash": "dash"},
            "hovertemplate": "all weights once: %{y:.3~g} ms<extra></extra>",
            "showlegend": bool(steps),
        }
    )
    empty = {"text": "no steps yet", "xref": "paper", "yref": "paper", "x": 0.5, "y": 0.5, "showarrow": False}
    layout = {
        "template": theme.TEMPLATE,
        "height": 260,
        "barmode": "stack",
        "legend": {"traceorder": "normal"},
        "bargap": 0.2,
        "annotations": [] if steps else [empty],
        "xaxis": {"title": {"text": "step"}, "range": [-0.6, max(len(steps), 1) - 0.4], "showgrid": False},
        "yaxis": {"title": {"text": "ms"}, "rangemode": "tozero"},
    }
    return go.Figure(data, layout)
