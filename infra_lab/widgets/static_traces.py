"""Draws plotly traces, as dicts, on matplotlib axes: lines, markers, text, bars, heatmaps."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from infra_lab.errors import ConfigError
from infra_lab.widgets import static_style as style
from infra_lab.widgets.theme import INK, PALETTE, SURFACE

_FEW_POINTS = 20
"""plotly's own rule: so many points get markers when no mode is given."""
_MOST_LABELS = 400


def draw_trace(axes: Any, trace: dict[str, Any], index: int, bars: "BarPlaces") -> Any:
    """Draw one trace and return what the legend shows for it, or None.

    Raises ConfigError for a type of trace that has no drawing here.
    """
    drawers: dict[str, Callable[[], Any]] = {
        "scatter": lambda: _scatter(axes, trace, PALETTE[index % len(PALETTE)]),
        "scattergl": lambda: _scatter(axes, trace, PALETTE[index % len(PALETTE)]),
        "bar": lambda: _bar(axes, trace, PALETTE[index % len(PALETTE)], bars),
        "heatmap": lambda: _heatmap(axes, trace),
    }
    kind = trace.get("type", "scatter")
    if kind not in drawers:
        raise ConfigError(f"a {kind!r} trace has no static picture; use one of {', '.join(sorted(drawers))}")
    return drawers[kind]()


def values(data: Any) -> list[Any] | npt.NDArray[np.float64]:
    """Return an array of floats, None as NaN; or a list of strings where they are categories."""
    items = [] if data is None else list(data)
    if any(isinstance(item, str) for item in items):
        return [style.plain(item) for item in items]
    return np.array([np.nan if item is None else item for item in items], np.float64)


def _scatter(axes: Any, trace: dict[str, Any], default: str) -> Any:
    x, y = values(trace.get("x")), values(trace.get("y"))
    if len(x) == 0:
        x = np.arange(len(y), dtype=np.float64)
    mode = trace.get("mode") or ("lines+markers" if len(y) < _FEW_POINTS else "lines")
    line, marker = trace.get("line", {}), trace.get("marker", {})
    alpha, z = trace.get("opacity"), 2.0  # None: as the colour says
    main = style.colour(line.get("color"), style.colour(marker.get("color"), default))
    step = style.STEPS.get(line.get("shape", ""))
    if trace.get("fill") in ("tozeroy", "tozerox", "toself"):
        faint = style.colour(trace.get("fillcolor"), main)
        if trace["fill"] == "tozeroy":
            axes.fill_between(x, y, step=step, color=faint, alpha=alpha, linewidth=0, zorder=z)
        else:
            axes.fill(x, y, color=faint, alpha=alpha, linewidth=0, zorder=z)
    entry = None
    if "lines" in mode:
        dash = style.DASHES.get(line.get("dash", "solid"), "-")
        drawn = "default" if step is None else f"steps-{step}"
        (entry,) = axes.plot(
            x, y, color=main, lw=line.get("width", 2) * style.POINT, ls=dash, drawstyle=drawn, alpha=alpha, zorder=z,
            solid_capstyle="butt",
        )  # fmt: skip
    if "markers" in mode:
        shape, is_filled = style.symbol(marker.get("symbol") if isinstance(marker.get("symbol"), str) else None)
        colours = _colours(marker.get("color"), main, len(y))
        edge = marker.get("line", {})
        size = np.asarray(marker.get("size", 6), np.float64) * style.POINT
        paint = {"facecolors": colours, "edgecolors": style.colour(edge.get("color"), "none")}
        if not is_filled:
            paint = {"c": colours} if shape in "|_" else {"facecolors": "none", "edgecolors": colours}
        entry = axes.scatter(
            x,
            y,
            s=size**2,
            marker=shape,
            **paint,
            linewidths=edge.get("width", 0 if is_filled else 1.2) * style.POINT,
            alpha=marker.get("opacity", alpha),
            zorder=z + 0.5,
        )
    if "text" in mode:
        _labels(axes, x, y, trace.get("text"), trace.get("textfont", {}), trace.get("textposition", "middle center"))
    return entry


def _labels(axes: Any, x: Any, y: Any, text: Any, font: dict[str, Any], position: str) -> None:
    texts = [text] * len(x) if isinstance(text, str) else list(text if text is not None else [])
    across, up = {"left": "right", "right": "left"}, {"top": "bottom", "bottom": "top"}
    vertical, _, horizontal = position.partition(" ")
    for place_x, place_y, words in list(zip(x, y, texts, strict=False))[:_MOST_LABELS]:
        axes.annotate(
            style.plain(words),
            (place_x, place_y),
            xytext=({"right": 6, "left": -6}.get(horizontal, 0), {"top": 5, "bottom": -5}.get(vertical, 0)),
            textcoords="offset points",
            fontsize=font.get("size", 11) * style.POINT,
            color=style.colour(font.get("color"), INK),
            ha=across.get(horizontal, "center"),
            va=up.get(vertical, "center"),
            zorder=5,
            annotation_clip=True,
        )


class BarPlaces:
    """Where the bars of several traces lie: beside each other, on top of each other, or each from its own base."""

    def __init__(self, traces: Sequence[dict[str, Any]], mode: str) -> None:
        self._mode = mode
        groups = [trace.get("offsetgroup") or id(trace) for trace in traces if trace.get("type") == "bar"]
        self._groups = list(dict.fromkeys(groups)) if mode == "group" else []
        self._tops: dict[tuple[Any, bool], float] = {}

    def shift(self, trace: dict[str, Any], width: float) -> tuple[float, float]:
        """Return (offset of the bar's centre, its width)."""
        if not self._groups:
            return 0.0, width
        part = width / len(self._groups)
        return (self._groups.index(trace.get("offsetgroup") or id(trace)) + 0.5) * part - width / 2, part

    def bases(self, positions: Sequence[Any], lengths: Sequence[float]) -> list[float]:
        """Return where each bar begins, and remember its end for the next trace."""
        bases = []
        for position, length in zip(positions, lengths, strict=True):
            key = (position, length < 0)
            bases.append(self._tops.get(key, 0.0) if self._mode in ("stack", "relative") else 0.0)
            self._tops[key] = bases[-1] + (0.0 if np.isnan(length) else length)
        return bases


def _bar(axes: Any, trace: dict[str, Any], default: str, places: BarPlaces) -> Any:
    is_flat = trace.get("orientation") == "h"
    along, lengths = values(trace.get("y" if is_flat else "x")), values(trace.get("x" if is_flat else "y"))
    lengths = np.asarray(lengths, np.float64)
    if len(along) == 0:
        along = np.arange(len(lengths), dtype=np.float64)
    base = trace.get("base")
    if base is None:
        bases: Any = places.bases(list(along), list(lengths))
    else:
        bases = np.broadcast_to(values(base) if np.ndim(base) else np.float64(base), lengths.shape)
    if isinstance(along, list):  # categories: matplotlib numbers them in the order in which they are first seen
        axis = axes.yaxis if is_flat else axes.xaxis
        axis.update_units(along)
        centres = np.asarray(axis.convert_units(along), np.float64)
    else:
        centres = along
    gaps = np.diff(np.unique(centres))
    width = trace.get("width")
    if width is None:
        width = 0.82 * (float(gaps.min()) if len(gaps) else 1.0)
    shift, thickness = places.shift(trace, float(np.max(width))) if places else (0.0, width)
    marker = trace.get("marker", {})
    alpha = trace.get("opacity", marker.get("opacity"))
    colours = _colours(marker.get("color"), style.colour(None, default), len(lengths))
    draw = axes.barh if is_flat else axes.bar
    ends = {"left": bases} if is_flat else {"bottom": bases}
    made = draw(centres + shift, lengths, thickness, color=colours, alpha=alpha, zorder=2, **ends)
    if trace.get("text") is not None and trace.get("textposition") != "none" and len(made) <= _MOST_LABELS:
        texts = [trace["text"]] * len(made) if isinstance(trace["text"], str) else list(trace["text"])
        axes.bar_label(made, [style.plain(words) for words in texts], fontsize=8, padding=2, color=INK)
    return made


def _colours(value: Any, fallback: Any, count: int) -> Any:
    """One colour, or one a point."""
    if value is None or isinstance(value, str):
        return style.colour(value, fallback)
    items = list(value)
    if items and not isinstance(items[0], str):
        return fallback
    return [style.colour(item, fallback) for item in items] if len(items) == count else fallback


def _heatmap(axes: Any, trace: dict[str, Any]) -> None:
    import plotly.colors
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    x, y, z = _grid(trace)
    scale = trace.get("colorscale") or "Viridis"
    steps = plotly.colors.get_colorscale(scale) if isinstance(scale, str) else scale
    colours = [(float(place), style.colour(name)) for place, name in steps]
    if trace.get("reversescale"):
        colours = [(1 - place, name) for place, name in reversed(colours)]
    ramp = LinearSegmentedColormap.from_list("trace", colours, N=1024)
    finite = z[np.isfinite(z)]
    if not len(finite):
        return
    low, high = trace.get("zmin"), trace.get("zmax")
    limits = Normalize(finite.min() if low is None else low, finite.max() if high is None else high)
    gap = max(trace.get("xgap") or 0, trace.get("ygap") or 0)
    mesh = axes.pcolormesh(
        _edges(x),
        _edges(y),
        np.ma.masked_invalid(z),
        cmap=ramp,
        norm=limits,
        alpha=trace.get("opacity"),
        edgecolors=SURFACE if gap else "none",
        linewidth=gap * style.POINT,
        zorder=1.5,
    )
    if trace.get("texttemplate") and trace.get("text") is not None and z.size <= _MOST_LABELS:
        columns, rows = np.meshgrid(x, y)
        _labels(axes, columns.ravel(), rows.ravel(), np.asarray(trace["text"]).ravel(), trace.get("textfont", {}), "")
    if trace.get("showscale", True):
        bar = axes.figure.colorbar(mesh, ax=axes, fraction=0.04, pad=0.02)
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=8, length=0)
        bar.set_label(style.plain((trace.get("colorbar", {}).get("title") or {}).get("text")), fontsize=8)


def _grid(trace: dict[str, Any]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return x [n], y [m], z [m, n], also for a heatmap given as columns (x, y, z of one entry a cell)."""
    z = np.array(
        [row if np.ndim(row) else np.float64(np.nan if row is None else row) for row in trace["z"]], np.float64
    )
    if z.ndim == 2:
        sides = [np.asarray(values(trace.get(key)), np.float64) for key in "xy"]
        x, y = (
            side if len(side) else np.arange(size, dtype=np.float64)
            for side, size in zip(sides, z.T.shape, strict=True)
        )
        return x, y, z
    x, column = np.unique(np.asarray(trace["x"], np.float64), return_inverse=True)
    y, row = np.unique(np.asarray(trace["y"], np.float64), return_inverse=True)
    grid = np.full((len(y), len(x)), np.nan)
    grid[row, column] = z
    return x, y, grid


def _edges(centres: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the n + 1 borders between n cells given by their centres."""
    if len(centres) == 1:
        return np.array([centres[0] - 0.5, centres[0] + 0.5])
    middle = (centres[:-1] + centres[1:]) / 2
    return np.concatenate([[2 * centres[0] - middle[0]], middle, [2 * centres[-1] - middle[-1]]])
