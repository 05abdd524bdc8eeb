"""Two figures as one, for a panel that has room for one: pinned, kept as a picture and updated together."""

from typing import Any

import plotly.graph_objects as go

_GAP_PX = 56
"""Between them: room for the upper one's ticks and title."""


def stack(upper: Any, lower: Any) -> Any:
    """Return a figure of the traces of both, each with one pair of axes, the lower one's being x2 and y2.

    Each keeps the height of its plot; the plots are of one width, within the wider of the margins.
    """
    margins = [
        {"t": 32, "b": 48, "l": 64, "r": 16, **figure.layout.margin.to_plotly_json()} for figure in (upper, lower)
    ]
    heights = [
        figure.layout.height - margin["t"] - margin["b"] for figure, margin in zip((upper, lower), margins, strict=True)
    ]
    whole = sum(heights) + _GAP_PX
    layout = {
        "template": upper.layout.template,
        "height": whole + margins[0]["t"] + margins[1]["b"],
        "margin": {
            "t": margins[0]["t"],
            "b": margins[1]["b"],
            **{side: max(margin[side] for margin in margins) for side in "lr"},
        },
        "xaxis": {**upper.layout.xaxis.to_plotly_json(), "anchor": "y"},
        "yaxis": {**upper.layout.yaxis.to_plotly_json(), "anchor": "x", "domain": [1 - heights[0] / whole, 1]},
        "xaxis2": {**lower.layout.xaxis.to_plotly_json(), "anchor": "y2"},
        "yaxis2": {**lower.layout.yaxis.to_plotly_json(), "anchor": "x2", "domain": [0, heights[1] / whole]},
    }
    below = [{**trace.to_plotly_json(), "xaxis": "x2", "yaxis": "y2"} for trace in lower.data]
    return go.Figure([*(trace.to_plotly_json() for trace in upper.data), *below], layout)
