"""What plotly's names of colours, dashes, symbols and marked-up text are in matplotlib."""

import html
import re
from typing import Any

from infra_lab.widgets.theme import PALETTE

DPI = 100
POINT = 72 / DPI
"""A pixel, in which plotly measures widths and sizes, in points, in which matplotlib does."""
DASHES: dict[str, Any] = {
    "solid": "-",
    "dash": (0, (5, 3)),
    "dot": (0, (1.2, 2)),
    "dashdot": (0, (5, 2, 1.2, 2)),
    "longdash": (0, (9, 4)),
    "longdashdot": (0, (9, 3, 1.2, 3)),
}
STEPS = {"hv": "post", "vh": "pre", "hvh": "mid", "vhv": "mid"}
SYMBOLS = {
    "circle": "o",
    "square": "s",
    "diamond": "D",
    "x": "X",
    "cross": "P",
    "triangle-up": "^",
    "triangle-down": "v",
    "triangle-left": "<",
    "triangle-right": ">",
    "star": "*",
    "hexagon": "h",
    "pentagon": "p",
    "line-ns": "|",
    "line-ew": "_",
}

_RGB = re.compile(r"rgba?\(([^)]*)\)")


def colour(value: Any, fallback: Any = PALETTE[0]) -> Any:
    """Return a colour as matplotlib wants it; the fallback for None and for what is no colour."""
    if not isinstance(value, str):
        return fallback
    match = _RGB.fullmatch(value.strip())
    if match is None:
        return "none" if value == "transparent" else value
    parts = [float(part) for part in match[1].split(",")]
    return (*(part / 255 for part in parts[:3]), *parts[3:4])


def symbol(name: Any) -> tuple[str, bool]:
    """Return (matplotlib marker, whether it is filled) for a plotly symbol such as "line-ns-open"."""
    text = str(name or "circle")
    base = text.removesuffix("-open")
    return SYMBOLS.get(base, "o"), base == text and not base.startswith("line-")


def plain(text: Any) -> str:
    """Return a plotly text without its markup; `<br>` begins a new line. "$" is no mathematics here."""
    marked = re.sub(
        r"<span[^>]*>■</span>\s*", "", str(text if text is not None else "")
    )  # a key in a colour of its own
    without = re.sub(r"<[^>]*>", "", re.sub(r"<br\s*/?>", "\n", marked))
    return html.unescape(without).replace("$", r"\$")
