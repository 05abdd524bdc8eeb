"""Places and dresses matplotlib axes as a plotly layout says: domains, ranges, ticks, titles, shapes, annotations."""

import math
from typing import Any

from infra_lab.widgets import static_style as style
from infra_lab.widgets.theme import GRID, INK, MUTED

_FONT = 8.5


def axis_key(ref: str) -> str:
    """Return where the layout keeps the axis that a trace calls "y2"."""
    return f"{ref[0]}axis{ref[1:]}"


def add_axes(
    figure: Any, layout: dict[str, Any], pair: tuple[str, str], plot: tuple[float, float, float, float]
) -> Any:
    """Return new axes for an (x, y) pair; `plot` is the figure's inner part: left, bottom, width, height of 1."""
    x, y = (layout.get(axis_key(ref), {}) for ref in pair)
    base = layout.get(axis_key(y["overlaying"]), {}) if y.get("overlaying") else y
    (x0, x1), (y0, y1) = x.get("domain", (0, 1)), base.get("domain", (0, 1))
    left, bottom, width, height = plot
    axes = figure.add_axes((left + x0 * width, bottom + y0 * height, (x1 - x0) * width, (y1 - y0) * height))
    axes.patch.set_visible(False)
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_visible(False)
    if x.get("type") == "log":
        axes.set_xscale("log")
    if y.get("type") == "log":
        axes.set_yscale("log")
    return axes


def dress_axes(axes: Any, layout: dict[str, Any], pair: tuple[str, str]) -> None:
    """Set ranges, ticks, grid and titles; after the traces are drawn, which would change the ranges."""
    for ref, axis in zip(pair, (axes.xaxis, axes.yaxis), strict=True):
        _dress(axes, axis, ref, layout.get(axis_key(ref), {}), pair)


def _dress(axes: Any, axis: Any, ref: str, wanted: dict[str, Any], pair: tuple[str, str]) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    is_x, is_log = ref[0] == "x", wanted.get("type") == "log"
    set_range = axes.set_xlim if is_x else axes.set_ylim
    limits = wanted.get("range")
    if limits is not None and None not in limits:
        set_range(*(10.0**end if is_log else end for end in limits))
    elif wanted.get("autorange") == "reversed":
        (axes.invert_xaxis if is_x else axes.invert_yaxis)()
    if not is_x and (wanted.get("side") == "right" or wanted.get("overlaying")):
        axis.tick_right()
        axis.set_label_position("right")
    ticks = wanted.get("tickvals")
    if ticks is not None:
        labels = wanted.get("ticktext") or ([f"{tick:g}" for tick in ticks] if is_log else None)
        axis.set_ticks(list(ticks), [style.plain(text) for text in labels] if labels is not None else None)
        axis.set_ticks([], minor=True)
    elif wanted.get("nticks") and not is_log:
        axis.set_major_locator(MaxNLocator(int(wanted["nticks"])))
    if wanted.get("ticksuffix") or wanted.get("tickprefix"):
        before, after = style.plain(wanted.get("tickprefix", "")), style.plain(wanted.get("ticksuffix", ""))
        axis.set_major_formatter(lambda value, _: f"{before}{value:g}{after}")
    elif "s" in str(wanted.get("tickformat", "")):
        axis.set_major_formatter(EngFormatter(sep=""))
    elif "%" in str(wanted.get("tickformat", "")):
        axis.set_major_formatter(lambda value, _: f"{value:.0%}")
    # Several plots may share an x axis; its ticks stand below the one that it is anchored to.
    is_shown = wanted.get("visible", True) and wanted.get("showticklabels", True)
    if is_x and wanted.get("anchor", pair[1]) != pair[1]:
        is_shown = False
    axis.set_tick_params(which="both", length=0, labelsize=_FONT, labelcolor=INK)
    if not is_shown:
        axis.set_tick_params(which="both", labelbottom=False, labelleft=False, labelright=False)
    if wanted.get("showgrid", True) and wanted.get("visible", True):
        axis.grid(True, which="major", color=style.colour(GRID), linewidth=0.7)
    title = style.plain((wanted.get("title") or {}).get("text"))
    if title and is_shown:
        axis.set_label_text(title, fontsize=_FONT, color=MUTED)


class Places:
    """Turns plotly's coordinates ("x2", "paper", "y domain") into positions on the picture."""

    def __init__(self, figure: Any, axes: dict[tuple[str, str], Any], plot: tuple[float, float, float, float]) -> None:
        self._figure, self._axes, self._plot = figure, axes, plot

    def at(self, layout: dict[str, Any], ref: str, value: Any) -> float:
        """Return a coordinate as a fraction of the whole picture. `ref` is "x", "y3", "paper" with the direction, …"""
        direction, _, name = ref.partition(":")
        is_x = direction == "x"
        if name == "paper":
            start, size = (self._plot[0], self._plot[2]) if is_x else (self._plot[1], self._plot[3])
            return float(start + float(value) * size)
        owner = name.removesuffix(" domain")
        axes = next((axes for pair, axes in self._axes.items() if owner in pair), next(iter(self._axes.values())))
        if name.endswith(" domain"):
            box = axes.get_position()
            return float(box.x0 + value * box.width if is_x else box.y0 + value * box.height)
        number = (axes.xaxis if is_x else axes.yaxis).convert_units(value)
        if layout.get(axis_key(owner), {}).get("type") == "log" and "#log" in ref:
            number = 10.0**number
        pixel = axes.transData.transform((number, 1.0) if is_x else (1.0, number))[0 if is_x else 1]
        scale = self._figure.bbox.width if is_x else self._figure.bbox.height
        return float(pixel / scale)


def draw_shape(figure: Any, places: Places, layout: dict[str, Any], shape: dict[str, Any]) -> None:
    """Draw a rectangle or a line; other shapes have no drawing here and are left out."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Rectangle

    x_ref, y_ref = f"x:{shape.get('xref', 'x')}", f"y:{shape.get('yref', 'y')}"
    x0, x1 = (places.at(layout, x_ref, shape[key]) for key in ("x0", "x1"))
    y0, y1 = (places.at(layout, y_ref, shape[key]) for key in ("y0", "y1"))
    line = shape.get("line", {})
    edge, width = style.colour(line.get("color"), INK), line.get("width", 2) * style.POINT
    common = {"transform": figure.transFigure, "alpha": shape.get("opacity", 1.0), "linewidth": width}
    common["zorder"] = 0.5 if shape.get("layer") == "below" else 6
    dash = style.DASHES.get(line.get("dash", "solid"), "-")
    if shape.get("type") == "line":
        figure.add_artist(Line2D([x0, x1], [y0, y1], color=edge, linestyle=dash, **common))
    elif shape.get("type") == "rect":
        fill = style.colour(shape.get("fillcolor"), "none")
        figure.add_artist(
            Rectangle(
                (x0, y0),
                x1 - x0,
                y1 - y0,
                facecolor=fill,
                edgecolor=edge if width else "none",
                linestyle=dash,
                **common,
            )
        )


def draw_annotation(figure: Any, places: Places, layout: dict[str, Any], note: dict[str, Any]) -> None:
    """Write an annotation, with its arrow if it has one."""
    # On a logarithmic axis, plotly gives annotations by their exponents but shapes by their values.
    x = places.at(layout, f"x:{note.get('xref', 'x')}#log".replace("paper#log", "paper"), note.get("x", 0.5))
    y = places.at(layout, f"y:{note.get('yref', 'y')}#log".replace("paper#log", "paper"), note.get("y", 0.5))
    font = note.get("font", {})
    horizontal = {"left": "left", "right": "right"}.get(note.get("xanchor", "auto"), "center")
    vertical = {"top": "top", "bottom": "bottom"}.get(note.get("yanchor", "auto"), "center")
    has_arrow = note.get("showarrow", True)
    width, height = figure.bbox.width, figure.bbox.height
    move = (note.get("ax", -10) / width, -note.get("ay", -30) / height) if has_arrow else (0.0, 0.0)
    move = (move[0] + note.get("xshift", 0) / width, move[1] + note.get("yshift", 0) / height)
    axes = next(iter(figure.axes))
    axes.annotate(
        style.plain(note.get("text")),
        xy=(x, y),
        xytext=(x + move[0], y + move[1]),
        xycoords=figure.transFigure,
        textcoords=figure.transFigure,
        fontsize=font.get("size", 11) * style.POINT,
        color=style.colour(font.get("color"), INK),
        ha=horizontal,
        va=vertical,
        rotation=-note.get("textangle", 0),
        annotation_clip=False,
        zorder=7,
        arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.8}
        if has_arrow and not math.isclose(0, sum(map(abs, move)))
        else None,
    )
