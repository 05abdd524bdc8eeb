"""The engine's steps as a picture: a lane for each request, and below them the KV blocks and the tokens of each step."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go

from infra_lab.engine.recorder import StepRecord
from infra_lab.widgets import theme
from infra_lab.widgets.figures import lanes as lane
from infra_lab.widgets.figures.lanes import Lanes, Mark, lanes_of
from infra_lab.widgets.figures.parts import joints, legend_key

_TOP, _BOTTOM, _GAP, _STRIP = 34, 44, 16, 64
"""Pixels: margins, the gap between the three parts, the height of each of the lower two."""
_MOST_LABELS = 24
_GAPS_UP_TO = 160
"""So many steps still have room for a pixel between two cells."""


def step_timeline(steps: Sequence[StepRecord], *, upto: int | None = None) -> Any:
    """Return a figure of recorded steps, oldest first; what comes after step number `upto` is dimmed.

    Upper part: prefill chunks, decodes, tokens taken from the prefix cache, preemptions and endings of each request. Lower
    parts: KV blocks in use of all there are, and tokens computed, prefill above decode. However many requests and steps, it
    has the same twelve traces, so that a live panel only changes their data.
    """
    lanes = lanes_of(steps)
    blocks = np.array([record.used_blocks for record in steps], np.float64)
    total = steps[-1].total_blocks if steps else 1
    decodes = np.where(lanes.kinds == lane.DECODE, lanes.tokens, 0).sum(axis=0).astype(np.float64)
    tokens = lanes.tokens.sum(axis=0).astype(np.float64)
    x = lanes.steps.astype(np.float64)
    data = [
        _cells(lanes, lane.PREFILL, theme.PREFILL, "prefill", "prefill: %{z} tokens from position %{customdata}"),
        _cells(lanes, lane.DECODE, theme.DECODE, "decode", "decode at position %{customdata}"),
        _cells(lanes, lane.WAITING, theme.WAITING, "preempted", "preempted, waits to be admitted again"),
        _joints(lanes),
        legend_key("prefill", theme.PREFILL, bool((lanes.kinds == lane.PREFILL).any())),
        legend_key("decode", theme.DECODE, bool((lanes.kinds == lane.DECODE).any())),
        _marks("from the prefix cache", lanes.cached, lanes, "diamond", theme.CACHED),
        _marks("preempted", lanes.preempted, lanes, "x", theme.PREEMPTED),
        _marks("finished", lanes.finished, lanes, "line-ns-open", theme.INK, shift=0.5),
        _area("y2", x, blocks, theme.USED, f"step %{{x}}: %{{y}} of {total} blocks in use"),
        _area(
            "y3", x, tokens, theme.PREFILL, "step %{x}: %{y} tokens, %{customdata} of them prefill", tokens - decodes
        ),
        _area("y3", x, decodes, theme.DECODE, "step %{x}: %{y} decodes"),
    ]
    return go.Figure(data, _layout(lanes, total, float(tokens.max(initial=1)), upto))


def cursor(upto: float, last: float) -> list[dict[str, Any]]:
    """Return the layout shapes that dim what comes after step `upto`, of steps up to `last`."""
    later = {"type": "rect", "x0": upto + 0.5, "x1": max(last, upto) + 0.5, "yref": "paper", "y0": 0, "y1": 1}
    edge = {**later, "type": "line", "x1": upto + 0.5}
    return [
        {**later, "fillcolor": theme.SURFACE, "opacity": 0.72, "line": {"width": 0}, "layer": "above"},
        {**edge, "line": {"color": theme.INK, "width": 1.5}, "layer": "above"},
    ]


def _cells(lanes: Lanes, kind: int, colour: str, name: str, hover: str) -> dict[str, Any]:
    """A heatmap of one kind of cell, as columns of (step, lane, tokens): flat arrays travel to the browser as they are.

    plotly makes a row and a column of whatever values occur, so an empty one is added for every step and lane: without it,
    the last cell before a pause would be as wide as the pause.
    """
    lane, x = np.nonzero(lanes.kinds == kind)
    count, first = len(lanes.names), lanes.steps[:1] - 1
    edge = np.full(count + len(lanes.steps), np.nan)
    return {
        "type": "heatmap",
        "name": name,
        "x": np.concatenate([lanes.steps[x], lanes.steps, np.repeat(first, count)]).astype(np.float32),
        "y": np.concatenate([lane, np.full(len(lanes.steps), -1), np.arange(count)]).astype(np.float32),
        "z": np.concatenate([lanes.tokens[lane, x], edge]).astype(np.float32),
        "customdata": np.concatenate([lanes.start[lane, x], np.zeros(len(edge), np.int32)]).astype(np.int32),
        "colorscale": [[0, colour], [1, colour]],
        "showscale": False,
        "hoverongaps": False,
        "hovertemplate": f"%{{y}}, step %{{x}}<br>{hover}<extra></extra>",
    }


def _joints(lanes: Lanes) -> dict[str, Any]:
    count, steps = len(lanes.names), lanes.steps
    x = (steps[0] - 0.5, steps[-1] + 0.5) if len(steps) else (0.0, 0.0)
    columns = steps[1:] - 0.5 if len(steps) <= _GAPS_UP_TO else ()
    width = 2 if count <= _MOST_LABELS and len(steps) <= _GAPS_UP_TO / 2 else 1
    return joints(columns, np.arange(1, count) - 0.5, x=x, y=(-0.5, count - 0.5), width=width)


def _marks(
    name: str, marks: list[Mark], lanes: Lanes, symbol: str, colour: str, *, shift: float = 0.0
) -> dict[str, Any]:
    line = {"width": 2, "color": colour} if symbol.endswith("-open") else {"width": 1, "color": theme.SURFACE}
    return {
        "type": "scatter",
        "name": name,
        "mode": "markers",
        "x": np.array([mark.step + shift for mark in marks], np.float64),
        "y": np.array([mark.lane for mark in marks], np.float64),
        "text": [f"{lanes.names[mark.lane]}, step {mark.step}<br>{mark.text}" for mark in marks],
        "marker": {"symbol": symbol, "size": 8, "color": colour, "line": line},
        "showlegend": bool(marks),
        "hovertemplate": "%{text}<extra></extra>",
    }


def _area(
    axis: str,
    x: npt.NDArray[np.float64],
    y: npt.NDArray[np.float64],
    colour: str,
    hover: str,
    customdata: npt.NDArray[np.float64] | None = None,
) -> dict[str, Any]:
    """A stepped area; its ends are repeated one step further out, so that the first and the last step have their full width."""
    if len(x):
        x = np.concatenate([x[:1] - 1, x, x[-1:] + 1])
        y = np.concatenate([y[:1], y, y[-1:]])
        customdata = None if customdata is None else np.concatenate([customdata[:1], customdata, customdata[-1:]])
    return {
        "type": "scatter",
        "mode": "lines",
        "x": x,
        "y": y,
        "yaxis": axis,
        "line": {"shape": "hvh", "width": 1, "color": colour},
        "fill": "tozeroy",
        "fillcolor": colour,
        "customdata": customdata,
        "showlegend": False,
        "hovertemplate": f"{hover}<extra></extra>",
    }


def _layout(lanes: Lanes, total_blocks: int, most_tokens: float, upto: int | None) -> dict[str, Any]:
    count = max(len(lanes.names), 1)
    lanes_px = min(max(count * 17, 90), 520)
    inner = lanes_px + 2 * (_GAP + _STRIP)
    first, last = (float(lanes.steps[0]), float(lanes.steps[-1])) if len(lanes.steps) else (0.0, 1.0)
    every = -(-count // _MOST_LABELS)
    shown = range(0, len(lanes.names), every)
    empty = {"text": "no steps recorded", "xref": "paper", "yref": "paper", "x": 0.5, "y": 0.6, "showarrow": False}
    return {
        "template": theme.TEMPLATE,
        "height": _TOP + inner + _BOTTOM,
        "margin": {"t": _TOP, "b": _BOTTOM, "l": 92, "r": 16},
        "shapes": [] if upto is None else cursor(upto, last),
        "annotations": [] if len(lanes.steps) else [empty],
        "xaxis": {"anchor": "y3", "range": [first - 0.5, last + 0.5], "title": {"text": "step"}, "showgrid": False},
        "yaxis": {
            "domain": [1 - lanes_px / inner, 1],
            "range": [count - 0.5, -0.5],
            "tickvals": list(shown),
            "ticktext": [_lane_label(lanes.names[i]) for i in shown],
            "showgrid": False,
        },
        "yaxis2": {
            "domain": [(_STRIP + _GAP) / inner, (2 * _STRIP + _GAP) / inner],
            "range": [0, total_blocks],
            "nticks": 3,
            "title": {"text": "blocks"},
        },
        "yaxis3": {
            "domain": [0, _STRIP / inner],
            "range": [0, most_tokens * 1.05],
            "nticks": 3,
            "title": {"text": "tokens"},
        },
    }


def _lane_label(request_id: str) -> str:
    """The request's colour, which the block map uses too, and its id."""
    name = request_id if len(request_id) <= 14 else request_id[:13] + "…"
    return f'<span style="color:{theme.request_colour(request_id)}">■</span> {name}'
