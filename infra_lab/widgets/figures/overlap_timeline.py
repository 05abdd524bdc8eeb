"""Host and device over a few steps, one after the other and overlapping."""

from collections.abc import Iterator, Mapping
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
    lanes = {f"{who}, {way}": (run, who) for way, run in runs.items() for who in ("device", "host")}
    data = [
        segments(what, colour, 22, "%{x:.2f} ms", _pieces(lanes, what, window_s)) for what, colour in _COLOURS.items()
    ]
    return go.Figure(data, _layout(runs, list(lanes), window_s))


def _pieces(
    lanes: Mapping[str, tuple[OverlapRun, str]], what: str, window_s: float
) -> Iterator[tuple[str, float, float]]:
    """Return who does this from when to when, in ms from the first launch that is shown."""
    for lane, (run, who) in lanes.items():
        origin_s = run.device[0].start_s
        for piece in run.device if who == "device" else run.host:
            start_s, end_s = piece.start_s - origin_s, min(piece.end_s - origin_s, window_s)
            if piece.what == what and 0 <= start_s < window_s:
                yield lane, 1e3 * start_s, 1e3 * end_s


def _layout(runs: Mapping[str, OverlapRun], lanes: list[str], window_s: float) -> dict[str, Any]:
    return {
        "template": theme.TEMPLATE,
        "height": 300,
        "margin": {"l": 200, "r": 90},
        "annotations": [
            {
                "text": f"{run.busy_share:.0%} busy", "x": 1.01, "xref": "paper", "xanchor": "left", "y": f"device, {way}",
                "yref": "y", "showarrow": False, "font": {"size": 12, "color": theme.INK},
            }
            for way, run in runs.items()
        ],
        "xaxis": {"title": {"text": "ms"}, "range": [0, 1e3 * window_s]},
        "yaxis": {
            "categoryorder": "array", "categoryarray": lanes[::-1], "range": [-0.6, len(lanes) - 0.4], "showgrid": False,
        },
    }  # fmt: skip
