"""The roofline (Williams 2009): what a chip allows at an arithmetic intensity, and what a kernel reached."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go

from infra_lab.errors import ConfigError
from infra_lab.widgets import theme
from infra_lab.widgets.figures.parts import si


class RooflinePoint(NamedTuple):
    """One measured or predicted piece of work."""

    name: str
    flops: float
    """Floating-point operations."""
    num_bytes: float
    """Bytes moved to and from memory."""
    seconds: float

    @property
    def intensity(self) -> float:
        """FLOP per byte."""
        return self.flops / self.num_bytes

    @property
    def flops_per_s(self) -> float:
        """Operations per second reached."""
        return self.flops / self.seconds


def roofline(
    ceilings_bytes_per_s: float | Mapping[str, float],
    ceilings_flops: float | Mapping[str, float],
    points: Sequence[RooflinePoint],
) -> Any:
    """Return a log-log figure of the memory and compute ceilings with the points below them.

    Ceilings are names → bytes/s and names → FLOP/s (a number alone is called "memory" or "compute"); the highest of each make
    the roof that a point is held against. Raises ConfigError for anything that is not positive.
    """
    slopes = _named(ceilings_bytes_per_s, "memory")
    flats = _named(ceilings_flops, "compute")
    for point in points:
        if not all(np.isfinite(value) and value > 0 for value in point[1:]):
            raise ConfigError(f"{point.name}: flops, num_bytes and seconds must be positive; they are {point[1:]}")
    bandwidth, peak = max(slopes.values()), max(flats.values())
    ridges = [flat / slope for flat in flats.values() for slope in slopes.values()]
    seen = [point.intensity for point in points]
    left, right = min(*ridges, *seen) / 6, max(*ridges, *seen) * 6
    data = [_slope(name, slope, left, peak) for name, slope in slopes.items()]
    data += [_flat(name, flat, flat / bandwidth, right) for name, flat in flats.items()]
    data += [_gaps(points, bandwidth, peak), _marks(points, bandwidth, peak)]
    bottom = min([bandwidth * left, *(point.flops_per_s for point in points)]) / 2
    return go.Figure(data, _layout((left, right), (bottom, peak * 4)))


def _named(ceilings: float | Mapping[str, float], name: str) -> Mapping[str, float]:
    named = ceilings if isinstance(ceilings, Mapping) else {name: ceilings}
    if not named or not all(np.isfinite(value) and value > 0 for value in named.values()):
        raise ConfigError(f"the {name} ceilings are {dict(named)}; give at least one, all of them positive")
    return named


def _slope(name: str, bytes_per_s: float, left: float, peak: float) -> dict[str, Any]:
    label = f"{name}: {si(bytes_per_s, 'B/s')}"
    x = np.array([left, peak / bytes_per_s])
    return _ceiling(label, x, x * bytes_per_s, theme.MEMORY_BOUND, ["", label], "top left")


def _flat(name: str, flops_per_s: float, left: float, right: float) -> dict[str, Any]:
    label = f"{name}: {si(flops_per_s, 'FLOP/s')}"
    return _ceiling(
        label, np.array([left, right]), np.full(2, flops_per_s), theme.COMPUTE_BOUND, ["", label], "top left"
    )


def _ceiling(label: str, x: Any, y: Any, colour: str, text: list[str], position: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines+text",
        "name": label,
        "x": x,
        "y": y,
        "text": [words and f"{words}<br> " for words in text],  # a line above the ceiling, not on it
        "textposition": position,
        "textfont": {"size": 11, "color": theme.INK},
        "line": {"color": colour, "width": 3},
        "showlegend": False,
        "hovertemplate": f"{label}<extra></extra>",
    }


def _gaps(points: Sequence[RooflinePoint], bandwidth: float, peak: float) -> dict[str, Any]:
    """A dotted line from each point up to the roof: what is left to gain."""
    x = [value for point in points for value in (point.intensity, point.intensity, None)]
    y = [value for point in points for value in (point.flops_per_s, _roof(point, bandwidth, peak), None)]
    line = {"color": theme.MUTED, "width": 1.5, "dash": "dot"}
    return {
        "type": "scatter",
        "mode": "lines",
        "x": x,
        "y": y,
        "line": line,
        "showlegend": False,
        "hoverinfo": "skip",
    }


def _marks(points: Sequence[RooflinePoint], bandwidth: float, peak: float) -> dict[str, Any]:
    is_memory = [point.intensity * bandwidth < peak for point in points]
    return {
        "type": "scatter",
        "mode": "markers+text",
        "x": [point.intensity for point in points],
        "y": [point.flops_per_s for point in points],
        "text": [point.name for point in points],
        "textposition": "bottom center",
        "textfont": {"size": 11, "color": theme.INK},
        "customdata": [
            f"{point.intensity:.3g} FLOP/byte, {si(point.flops_per_s, 'FLOP/s')}<br>"
            f"{point.flops_per_s / _roof(point, bandwidth, peak):.0%} of the roof, "
            f"{'memory' if memory else 'compute'}-bound"
            for point, memory in zip(points, is_memory, strict=True)
        ],
        "marker": {
            "size": 11,
            "symbol": ["circle" if memory else "square" for memory in is_memory],
            "color": [theme.PALETTE[i % len(theme.PALETTE)] for i in range(len(points))],
            "line": {"width": 1, "color": theme.SURFACE},
        },
        "showlegend": False,
        "hovertemplate": "%{text}<br>%{customdata}<extra></extra>",
    }


def _roof(point: RooflinePoint, bandwidth: float, peak: float) -> float:
    return min(point.intensity * bandwidth, peak)


def _layout(x: tuple[float, float], y: tuple[float, float]) -> dict[str, Any]:
    return {
        "template": theme.TEMPLATE,
        "height": 420,
        "margin": {"l": 72, "t": 16},
        "xaxis": {**log_axis(*x), "title": {"text": "arithmetic intensity (FLOP/byte)"}, "tickformat": "~g"},
        "yaxis": {**log_axis(*y), "title": {"text": "FLOP/s"}, "tickformat": "~s"},
    }


def log_axis(low: float, high: float) -> dict[str, Any]:
    """Return a logarithmic axis between two values, with few enough ticks to be read."""
    return {"type": "log", "range": list(np.log10((low, high))), "dtick": _ticks((low, high))}


def _ticks(ends: tuple[float, float]) -> str | int:
    """Powers of ten, with 2 and 5 between them where there are few: plotly would write all nine over each other."""
    return "D2" if np.log10(ends[1] / ends[0]) < 4 else 1
