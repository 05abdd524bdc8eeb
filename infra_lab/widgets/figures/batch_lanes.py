"""A served workload at a glance: each request's way through time, who runs and waits, KV, and two latencies against limits."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import plotly.graph_objects as go

from infra_lab.widgets import theme
from infra_lab.widgets.batching_run import BatchRun
from infra_lab.widgets.figures.parts import segments

_TOP, _BOTTOM = 34, 46
_LANES, _STRIP, _GAP = 280, 70, 24
"""Pixels: margins, the lanes, each strip below them, the gaps."""
_TTFT_MS, _GAP_MS = (0.6, 4.4), (-0.2, 3.4)
"""Powers of ten: fixed, so that a curve moves and not its axis."""
_IDLE_S = 2e-3
"""Between two steps of a real engine lies the loop around it; what is longer is rest."""
_HOVER = "request %{y}, %{x:.3f} s"
_MOST_POINTS = 120
"""Of a curve on the right, which is some 200 pixels wide."""
_TICKS = {0: "1 ms", 1: "10 ms", 2: "100 ms", 3: "1 s", 4: "10 s"}


def batch_lanes(run: BatchRun) -> Any:
    """Return the figure. Left, over time: a lane for each request (it waits, its prompt is computed, it decodes; a gap between
    two tokens that is longer than the limit is set off), requests that run and wait, KV in use. Right: which share of
    requests had its first token by when, and which share of gaps between tokens was how long.

    Expects limits for TTFT and TPOT.
    """
    assert run.slo.ttft_s is not None
    assert run.slo.tpot_s is not None
    lanes = run.lanes
    gaps = [later - time_s for lane in lanes for time_s, later in pairwise(lane.token_times_s)]
    ttft = [lane.token_times_s[0] - lane.arrival_s for lane in lanes]
    missed = [(index, lane.token_times_s[-1]) for index, lane in enumerate(lanes) if not lane.is_good]
    data = [
        segments(
            "waits", theme.MUTED, 2, _HOVER, ((i, lane.arrival_s, lane.admitted_s) for i, lane in enumerate(lanes))
        ),
        segments(
            "prompt",
            theme.PREFILL,
            6,
            _HOVER,
            ((i, lane.admitted_s, lane.token_times_s[0]) for i, lane in enumerate(lanes)),
        ),
        segments("decodes", theme.DECODE, 4, _HOVER, _decodes(run, run.slo.tpot_s, is_long=False)),
        segments("gap over the limit", theme.PREEMPTED, 4, _HOVER, _decodes(run, run.slo.tpot_s, is_long=True)),
        {
            "type": "scatter",
            "mode": "markers",
            "name": "missed a limit",
            "x": [round(time_s, 5) for _, time_s in missed],
            "y": [index for index, _ in missed],
            "marker": {"symbol": "x", "size": 7, "color": theme.PREEMPTED, "line": {"width": 0}},
            "showlegend": bool(missed),
            "hovertemplate": "request %{y}<extra>missed a limit</extra>",
        },
        *_strips(run),
        *_share("first token", theme.PREFILL, ttft, run.slo.ttft_s, "2", "4"),
        *_share("gap between tokens", theme.DECODE, gaps, run.slo.tpot_s, "3", "5"),
    ]
    return go.Figure(data, _layout(run))


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)


def _decodes(run: BatchRun, limit_s: float, *, is_long: bool) -> Iterator[tuple[int, float, float]]:
    """Stretches between tokens, neighbours of one kind joined."""
    for index, lane in enumerate(run.lanes):
        start_s: float | None = None
        for time_s, later_s in pairwise(lane.token_times_s):
            if (later_s - time_s > limit_s) == is_long:
                start_s = time_s if start_s is None else start_s
            elif start_s is not None:
                yield index, start_s, time_s
                start_s = None
        if start_s is not None:
            yield index, start_s, lane.token_times_s[-1]


def _strips(run: BatchRun) -> Iterator[dict[str, Any]]:
    running, used = _Steps(), _Steps()
    for step in run.steps:
        times = (round(step.start_s, 5), round(step.start_s + step.duration_s, 5))
        running.add(*times, len(step.chunks))
        used.add(*times, 100 * step.used_blocks / step.total_blocks)
    events = [(lane.arrival_s, 0, 1) for lane in run.lanes] + [(lane.admitted_s, 1, -1) for lane in run.lanes]
    when, _, change = zip(*sorted(events), strict=True)  # who comes and is let in at once has come first
    yield _strip("in the step", theme.DECODE, "y2", running.x, running.y, is_area=True)
    yield _strip(
        "in the queue", theme.INK, "y2", [round(t, 5) for t in when], np.cumsum(change).tolist(), is_area=False
    )
    yield _strip("KV in use", theme.USED, "y3", used.x, used.y, is_area=True)


class _Steps:
    """Levels over time as corners of a line: none where nothing changes, and down to 0 where nothing is computed."""

    def __init__(self) -> None:
        self.x: list[float] = []
        self.y: list[float] = []

    def add(self, start_s: float, end_s: float, level: float) -> None:
        """Hold a level from start to end."""
        if self.x and start_s > self.x[-1] + _IDLE_S:
            self.x += [self.x[-1], start_s]
            self.y += [0, 0]
        if self.y and self.y[-1] == level:
            self.x[-1] = end_s
        else:
            self.x += [start_s, end_s]
            self.y += [level, level]


def _strip(name: str, colour: str, axis: str, x: list[float], y: list[float], *, is_area: bool) -> dict[str, Any]:
    made: dict[str, Any] = {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": x,
        "y": y,
        "yaxis": axis,
        "line": {"color": colour, "width": 1 if is_area else 1.5},
        "showlegend": False,
        "hovertemplate": f"%{{x:.3f}} s: %{{y:.3~g}}<extra>{name}</extra>",
    }
    if is_area:
        return {**made, "fill": "tozeroy", "fillcolor": theme.with_alpha(colour, 0.55)}
    made["line"]["shape"] = "hv"
    return made


def _share(
    name: str, colour: str, seconds: Sequence[float], limit_s: float, x_axis: str, y_axis: str
) -> Iterator[dict[str, Any]]:
    ordered = sorted(seconds)
    every = max(1, len(ordered) // _MOST_POINTS)
    ranks = sorted({*range(0, len(ordered), every), len(ordered) - 1}) if ordered else []
    axes = {"type": "scatter", "mode": "lines", "xaxis": f"x{x_axis}", "yaxis": f"y{y_axis}", "showlegend": False}
    yield {
        **axes,
        "name": name,
        "x": [_ms(max(ordered[rank], 1e-6)) for rank in ranks],
        "y": [round(100 * (rank + 1) / len(ordered), 2) for rank in ranks],
        "line": {"color": colour, "width": 2, "shape": "hv"},
        "hovertemplate": f"%{{y:.0f}}% within %{{x:,.3~g}} ms<extra>{name}</extra>",
    }
    yield {
        **axes,
        "name": "limit",
        "x": [_ms(limit_s)] * 2,
        "y": [0, 100],
        "line": {"color": theme.PREEMPTED, "width": 1.5, "dash": "dash"},
        "hovertemplate": f"limit: {_ms(limit_s):g} ms<extra></extra>",
    }


def _layout(run: BatchRun) -> dict[str, Any]:
    inner = _LANES + 2 * (_GAP + _STRIP)
    count = len(run.lanes)
    end_s = max(lane.token_times_s[-1] for lane in run.lanes)
    most_kv = 100 if max(step.used_blocks / step.total_blocks for step in run.steps) > 0.5 else 50
    assert run.slo.ttft_s is not None
    assert run.slo.tpot_s is not None
    left, right = [0.0, 0.66], [0.745, 1.0]
    kv_domain, queue_domain = ([at / inner, (at + _STRIP) / inner] for at in (0, _STRIP + _GAP))
    percent = {"range": [0, 103], **_percent(0, 25, 50, 75, 100)}
    return {
        "template": theme.TEMPLATE,
        "height": _TOP + inner + _BOTTOM,
        "margin": {"t": _TOP, "b": _BOTTOM, "l": 58, "r": 18},
        "showlegend": True,
        "annotations": [
            _note("area: in the step, line: in the queue", queue_domain[1]),
            _note("KV blocks in use", kv_domain[1]),
        ],
        "xaxis": {
            "title": {"text": "seconds"},
            "domain": left,
            "anchor": "y3",
            "range": [0, round(end_s * 1.02, 3)],
            "nticks": 8,
        },
        "xaxis2": {
            **_log(f"to the first token (limit {run.slo.ttft_s * 1e3:.0f} ms)", _TTFT_MS),
            "domain": right,
            "anchor": "y4",
        },
        "xaxis3": {
            **_log(f"from token to token (limit {run.slo.tpot_s * 1e3:.0f} ms)", _GAP_MS),
            "domain": right,
            "anchor": "y5",
        },
        "yaxis": {
            "title": {"text": "request"},
            "domain": [1 - _LANES / inner, 1.0],
            "range": [count - 0.4, -0.6],
            "nticks": 6,
            "showgrid": False,
        },
        "yaxis2": {"title": {"text": "requests"}, "domain": queue_domain, "range": [0, count], "nticks": 4},
        "yaxis3": {"domain": kv_domain, "range": [0, most_kv], **_percent(most_kv // 2, most_kv)},
        "yaxis4": {"title": {"text": "of requests"}, "domain": [0.6, 1.0], "anchor": "x2", **percent},
        "yaxis5": {"title": {"text": "of gaps"}, "domain": [0.0, 0.4], "anchor": "x3", **percent},
    }


def _percent(*ticks: int) -> dict[str, Any]:
    return {"tickvals": list(ticks), "ticktext": [f"{tick}%" for tick in ticks]}


def _note(text: str, y: float) -> dict[str, Any]:
    """A strip's name in its upper right corner."""
    font = {"size": 11, "color": theme.MUTED}
    place = {"xref": "paper", "yref": "paper", "x": 0.66, "y": y, "xanchor": "right", "yanchor": "bottom"}
    return {"text": text, "font": font, "showarrow": False, "yshift": -2, **place}


def _log(title: str, powers: tuple[float, float]) -> dict[str, Any]:
    shown = {power: text for power, text in _TICKS.items() if powers[0] <= power <= powers[1]}
    return {
        "title": {"text": title},
        "type": "log",
        "range": list(powers),
        "tickvals": [10.0**power for power in shown],
        "ticktext": list(shown.values()),
    }
