"""Engines side by side on one workload: prompt tokens, latencies and KV of each, and one engine's KV pool over time."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go

from infra_lab.widgets import theme
from infra_lab.widgets.engines_run import EngineRun

_COLUMNS = ((0.0, 0.2), (0.27, 0.47), (0.54, 0.74), (0.81, 1.0))
_LOWER, _UPPER = [0.0, 0.34], [0.53, 1.0]
_TTFT_MS, _TPOT_MS = [0.9, 4.6], [0, 80]
"""Fixed, so that a mark moves and not its axis; the first in powers of ten."""


def engine_comparison(runs: Mapping[str, EngineRun], shown: str) -> Any:
    """Return the figure: above, the pool of engine `shown` over time; below, a row for each engine in four columns.

    A dot is the median, the line goes to the worst request.
    """
    names = list(runs)[::-1]
    rows = [runs[name] for name in names]
    labels = [f"<b>▸ {name}</b>" if name == shown else name for name in names]
    computed = [run.computed_prompt_tokens for run in rows]
    stored = [100 * run.kv_utilisation for run in rows]
    data = [
        *_pool(runs[shown]),
        _bar("computed", labels, computed, theme.PREFILL, "2", "%{x:,} prompt tokens"),
        _bar(
            "from the prefix cache",
            labels,
            [max(0, run.prompt_tokens - run.computed_prompt_tokens) for run in rows],
            theme.CACHED,
            "2",
            "%{x:,} prompt tokens",
        ),
        *_dumbbells("first token", labels, rows, lambda run: run.ttft_s, theme.PREFILL, "3"),
        *_dumbbells("a token", labels, rows, lambda run: run.tpot_s, theme.DECODE, "4"),
        _bar("holds a token", labels, stored, theme.USED, "5", "%{x:.0f}% of the reserved slots"),
        _bar(
            "reserved, empty", labels, [100 - share for share in stored], theme.PREEMPTED, "5", "%{x:.0f}%", alpha=0.45
        ),
    ]
    return go.Figure(data, _layout(runs, shown, labels))


def _pool(run: EngineRun) -> list[dict[str, Any]]:
    """Two stacked areas; between two steps the pool is as the last one left it."""
    times = np.array([use.start_s for use in run.pool] + [run.end_s]).round(4).tolist()
    stored = [100 * use.stored / run.total_slots for use in run.pool]
    reserved = [100 * use.reserved / run.total_slots for use in run.pool]
    return [
        {
            "type": "scatter",
            "mode": "lines",
            "name": name,
            "x": times,
            "y": [*np.round(values, 2).tolist(), 0.0],
            "line": {"shape": "hv", "width": 1, "color": colour},
            "fill": "tozeroy",
            "fillcolor": theme.with_alpha(colour, alpha),
            "showlegend": True,
            "hovertemplate": f"%{{x:.2f}} s: %{{y:.1f}}% of the pool<extra>{name}</extra>",
        }
        for name, values, colour, alpha in (
            ("reserved", reserved, theme.PREEMPTED, 0.4),
            ("holds a token", stored, theme.USED, 0.8),
        )
    ]


def _bar(
    name: str, labels: list[str], values: list[Any], colour: str, axis: str, hover: str, alpha: float = 1.0
) -> dict[str, Any]:
    return {
        "type": "bar",
        "orientation": "h",
        "name": name,
        "x": values,
        "y": labels,
        "xaxis": f"x{axis}",
        "yaxis": f"y{axis}",
        "marker": {"color": theme.with_alpha(colour, alpha), "line": {"width": 0}},
        "showlegend": axis == "2",
        "hovertemplate": f"%{{y}}: {hover}<extra>{name}</extra>",
    }


def _dumbbells(
    name: str,
    labels: list[str],
    rows: list[EngineRun],
    values_of: Callable[[EngineRun], list[float]],
    colour: str,
    axis: str,
) -> list[dict[str, Any]]:
    medians = [1e3 * float(np.median(values_of(run))) for run in rows]
    worst = [1e3 * max(values_of(run)) for run in rows]
    common = {"type": "scatter", "xaxis": f"x{axis}", "yaxis": f"y{axis}", "showlegend": False}
    ends = [(x, label) for a, b, label in zip(medians, worst, labels, strict=True) for x in (a, b, None)]
    return [
        {
            **common,
            "mode": "lines",
            "name": f"{name}, to the worst",
            "x": [x for x, _ in ends],
            "y": [label for _, label in ends],
            "line": {"color": colour, "width": 3},
            "hoverinfo": "skip",
        },
        {
            **common,
            "mode": "markers",
            "name": f"{name}, median",
            "x": medians,
            "y": labels,
            "marker": {"color": colour, "size": 11},
            "customdata": worst,
            "hovertemplate": "%{y}: median %{x:.3~g} ms, worst %{customdata:.3~g} ms<extra></extra>",
        },
    ]


def _layout(runs: Mapping[str, EngineRun], shown: str, labels: list[str]) -> dict[str, Any]:
    end_s = max(run.end_s for run in runs.values())
    most = max(max(run.prompt_tokens, run.computed_prompt_tokens) for run in runs.values())
    titles = ("prompt tokens", "ms to the first token", "ms a token", "% of reserved slots")
    scales: tuple[dict[str, Any], ...] = (
        {"range": [0, most], "nticks": 3},
        {"type": "log", "range": _TTFT_MS, "tickvals": [10, 100, 1000, 10000], "ticktext": ["10", "100", "1k", "10k"]},
        {"range": _TPOT_MS, "tickvals": [0, 25, 50, 75]},
        {"range": [0, 100], "tickvals": [0, 50, 100]},
    )
    layout: dict[str, Any] = {
        "template": theme.TEMPLATE,
        "height": 430,
        "barmode": "stack",
        "margin": {"l": 170, "t": 34, "b": 48},
        "legend": {"traceorder": "normal"},
        "xaxis": {"title": {"text": f"seconds, {shown}"}, "range": [0, end_s], "anchor": "y"},
        "yaxis": {"title": {"text": "% of all KV slots"}, "range": [0, 100], "domain": _UPPER, "anchor": "x"},
    }
    for column, (title, scale) in enumerate(zip(titles, scales, strict=True)):
        number = str(column + 2)
        layout[f"xaxis{number}"] = {
            "title": {"text": title}, "domain": _COLUMNS[column], "anchor": f"y{number}", **scale,
        }  # fmt: skip
        layout[f"yaxis{number}"] = {
            "domain": _LOWER, "anchor": f"x{number}", "showticklabels": column == 0, "showgrid": False,
            "categoryorder": "array", "categoryarray": labels, "range": [-0.6, len(labels) - 0.4],
        }  # fmt: skip
    return layout
