"""Host and device over a few steps, one after the other and overlapping."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from infra_lab.widgets import theme
from infra_lab.widgets.figures.parts import segments
from infra_lab.widgets.overlap_run import HAND_OUT, NOTE, PLAN, OverlapRun

_COLOURS = {PLAN: theme.PURPLE, NOTE: theme.PREEMPTED, HAND_OUT: theme.CACHED, "computes": theme.USED}
_STEPS_SHOWN = 3.5
"""Of the slower way."""


def overlap_timeline(runs: Mapping[str, OverlapRun]) -> Any:
    """Return the figure: for each way a lane for the device and one for the host, from the launch of a step on."""
    window_s = _STEPS_SHOWN * max(run.step_s for run in runs.values())
    data = [
        segments(what, colour, 18, "%{x:.2f} ms", _pieces(list(runs.values()), what, window_s))
        for what, colour in _COLOURS.items()
    ]
    return go.Figure(data, _layout(runs, window_s))


def _pieces(runs: Sequence[OverlapRun], what: str, window_s: float) -> Iterator[tuple[int, float, float]]:
    """Return who does this from when to when, in ms from the first launch that is shown; lanes from above."""
    for number, run in enumerate(runs):
        origin_s = run.device[0].start_s
        for who, pieces in enumerate((run.device, run.host)):
            for piece in pieces:
                start_s, end_s = piece.start_s - origin_s, min(piece.end_s - origin_s, window_s)
                if piece.what == what and 0 <= start_s < window_s:
                    yield 2 * number + who, 1e3 * start_s, 1e3 * end_s


def _layout(runs: Mapping[str, OverlapRun], window_s: float) -> dict[str, Any]:
    lanes = [f"{who}, {way}" for way in runs for who in ("device", "host")]
    return {
        "template": theme.TEMPLATE,
        "height": 300,
        "margin": {"l": 200, "r": 90},
        "annotations": [
            {
                "text": f"{run.busy_share:.0%} busy", "x": 1.01, "xref": "paper", "xanchor": "left",
                "y": 2 * number, "yref": "y", "showarrow": False, "font": {"size": 12, "color": theme.INK},
            }
            for number, run in enumerate(runs.values())
        ],
        "xaxis": {"title": {"text": "ms"}, "range": [0, 1e3 * window_s]},
        "yaxis": {
            "tickvals": list(range(len(lanes))), "ticktext": lanes, "range": [len(lanes) - 0.4, -0.6], "showgrid": False,
        },
    }  # fmt: skip
