"""Pieces that several figures are made of."""

from typing import Any


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


def si(value: float, unit: str) -> str:
    """Return a number with three digits and an SI prefix: 1.98e12 and "FLOP/s" is "1.98 TFLOP/s"."""
    for power, prefix in ((15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k"), (0, ""), (-3, "m"), (-6, "µ"), (-9, "n")):
        if abs(value) >= 10.0**power:
            return f"{value / 10.0**power:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"
