"""Pieces that several figures are made of."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from infra_lab.widgets.theme import SURFACE


def joints(
    columns: Iterable[float],
    rows: Iterable[float],
    *,
    x: tuple[float, float],
    y: tuple[float, float],
    width: float,
) -> dict[str, Any]:
    """Return the gaps between a heatmap's cells as lines in the page's colour: columns at these x, rows at these y.

    The cells themselves must touch: then plotly draws a picture of a pixel a cell, and the browser enlarges it. With a gap of
    its own it paints and compresses every pixel of the screen, at every change.
    """
    lines = [*((place, place, *y) for place in columns), *((*x, place, place) for place in rows)]
    x0, x1, y0, y1 = np.array(lines, np.float64).reshape(-1, 4).T
    nowhere = np.full(len(lines), np.nan)
    return {
        "type": "scatter",
        "mode": "lines",
        "x": np.stack([x0, x1, nowhere], axis=1).ravel(),
        "y": np.stack([y0, y1, nowhere], axis=1).ravel(),
        "line": {"color": SURFACE, "width": width},
        "showlegend": False,
        "hoverinfo": "skip",
    }


def legend_key(
    name: str, colour: str, is_shown: bool, *, symbol: str = "square", edge: str | None = None
) -> dict[str, Any]:
    """Return a trace without points that puts an entry into the legend: heatmaps and cells have none of their own."""
    line = {"width": 2 if edge else 0, "color": edge or colour}
    return {
        "type": "scatter",
        "name": name,
        "mode": "markers",
        "x": [None],
        "y": [None],
        "marker": {"symbol": symbol, "size": 10, "color": colour, "line": line},
        "showlegend": is_shown,
        "hoverinfo": "skip",
    }


def segments(
    name: str, colour: str, width: int, hover: str, pieces: Iterable[tuple[Any, float, float]]
) -> dict[str, Any]:
    """Return a trace of thick lines: for each piece (lane, start, end) that has a length, one in its lane.

    hover: a template of x and y.
    """
    # Lists: in a FigureWidget that changes while the browser draws, plotly 7 stumbles over arrays.
    x: list[float | None] = []
    y: list[Any] = []
    for lane, start, end in pieces:
        if end > start:
            x += [round(start, 5), round(end, 5), None]
            y += [lane, lane, None]
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": x,
        "y": y,
        "line": {"color": colour, "width": width},
        "showlegend": bool(x),
        "hovertemplate": f"{hover}<extra>{name}</extra>",
    }


def si(value: float, unit: str) -> str:
    """Return a number with three digits and an SI prefix: 1.98e12 and "FLOP/s" is "1.98 TFLOP/s"."""
    for power, prefix in ((15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k"), (0, ""), (-3, "m"), (-6, "µ"), (-9, "n")):
        if abs(value) >= 10.0**power:
            return f"{value / 10.0**power:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"
