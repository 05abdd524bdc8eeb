"""A figure as a PNG, drawn by matplotlib: for saved notebooks, which show a picture where no browser runs plotly.

It draws the part of plotly that the lab's figures use: scatter (lines, steps, dashes, markers, text, filled areas), bar,
heatmap; several plots in one figure, logarithmic axes, ticks, titles, rectangles, lines, annotations and a legend.
"""

import io
from collections.abc import Sequence
from typing import Any

from infra_lab.widgets import static_style as style
from infra_lab.widgets.theme import INK, SURFACE

_MARGIN = {"l": 64, "r": 16, "t": 32, "b": 48}
_COLOURS = 128
"""A picture of flat colours loses nothing by a palette, and is a third of the size."""


def static_png(figure: Any, *, width_px: int = 900) -> bytes:
    """Return a PNG, `width_px` wide and as high as the figure's layout says (360 without a height).

    Raises ConfigError for a type of trace that has no static drawing, naming it.
    """
    # Imported here: it takes a second, and most who use a panel never ask for a picture.
    from matplotlib.figure import Figure

    from infra_lab.widgets.static_axes import Places, add_axes, draw_annotation, draw_shape, dress_axes
    from infra_lab.widgets.static_traces import BarPlaces, draw_trace

    layout = figure.layout.to_plotly_json()
    traces = [trace.to_plotly_json() for trace in figure.data if trace.visible in (None, True)]
    height_px = int(layout.get("height") or 360)
    plot = _inner(layout, width_px, height_px)
    picture = Figure(figsize=(width_px / style.DPI, height_px / style.DPI), dpi=style.DPI, facecolor=SURFACE)
    pairs = list(dict.fromkeys((trace.get("xaxis") or "x", trace.get("yaxis") or "y") for trace in traces)) or [
        ("x", "y")
    ]
    axes = {pair: add_axes(picture, layout, pair, plot) for pair in pairs}
    bars = {
        pair: BarPlaces([trace for trace in traces if _pair(trace) == pair], layout.get("barmode", "group"))
        for pair in pairs
    }
    entries = []
    for index, trace in enumerate(traces):
        entry = draw_trace(axes[_pair(trace)], trace, index, bars[_pair(trace)])
        if entry is not None and trace.get("showlegend", True) and trace.get("name"):
            entries.append((entry, style.plain(trace["name"])))
    for pair in pairs:
        dress_axes(axes[pair], layout, pair)
    places = Places(picture, axes, plot)
    for shape in layout.get("shapes", ()):
        draw_shape(picture, places, layout, shape)
    for note in layout.get("annotations", ()):
        draw_annotation(picture, places, layout, note)
    _legend(picture, entries, layout, plot, len(traces))
    return _png(picture)


def stacked(pictures: Sequence[bytes]) -> bytes:
    """Return PNGs of one width as a single one, each below the one before."""
    from PIL import Image

    parts = [Image.open(io.BytesIO(picture)).convert("RGB") for picture in pictures]
    whole = Image.new("RGB", (max(part.width for part in parts), sum(part.height for part in parts)), SURFACE)
    top = 0
    for part in parts:
        whole.paste(part, (0, top))
        top += part.height
    return _small(whole)


def _pair(trace: dict[str, Any]) -> tuple[str, str]:
    return trace.get("xaxis") or "x", trace.get("yaxis") or "y"


def _inner(layout: dict[str, Any], width_px: int, height_px: int) -> tuple[float, float, float, float]:
    """Return what the margins leave: left, bottom, width and height as fractions of the picture."""
    margin = {**_MARGIN, **{key: value for key, value in layout.get("margin", {}).items() if key in _MARGIN}}
    left, bottom = margin["l"] / width_px, margin["b"] / height_px
    return left, bottom, 1 - left - margin["r"] / width_px, 1 - bottom - margin["t"] / height_px


def _legend(
    picture: Any, entries: list[tuple[Any, str]], layout: dict[str, Any], plot: tuple[float, ...], count: int
) -> None:
    wanted = layout.get("showlegend")
    if wanted is False or not entries or (wanted is None and count < 2):
        return
    handles, labels = zip(*entries, strict=True)
    picture.legend(
        handles,
        labels,
        loc="lower left",
        bbox_to_anchor=(plot[0], plot[1] + plot[3]),
        ncols=min(len(entries), 6),
        fontsize=8,
        frameon=False,
        labelcolor=INK,
        handlelength=1.4,
        columnspacing=1.4,
        borderaxespad=0.2,
    )


def _png(picture: Any) -> bytes:
    from PIL import Image

    raw = io.BytesIO()
    picture.savefig(raw, format="png", dpi=style.DPI)
    return _small(Image.open(raw).convert("RGB"))


def _small(image: Any) -> bytes:
    small = io.BytesIO()
    image.quantize(_COLOURS).save(small, format="PNG", optimize=True)
    return small.getvalue()
