"""Colours and the plotly template of every figure: safe for colour-blind eyes, legible on a light and a dark page.

The palette is Okabe and Ito's (2008). Figures are drawn with a transparent background; INK, MUTED,
SURFACE and ACCENT are placeholders that the panels' style sheet maps to JupyterLab's own colours, so that a figure follows a
change of theme at once.
"""

import zlib
from typing import Any

import plotly.graph_objects as go

BLUE, ORANGE, SKY, VERMILLION = "#0072B2", "#E69F00", "#56B4E9", "#D55E00"
GREEN, PURPLE, YELLOW, BROWN = "#009E73", "#CC79A7", "#F0E442", "#9C6B3F"

PREFILL, DECODE, CACHED, PREEMPTED = BLUE, ORANGE, SKY, VERMILLION
USED, SHARED, COPIED = GREEN, PURPLE, VERMILLION
MEMORY_BOUND, COMPUTE_BOUND = SKY, ORANGE

INK = "#24292F"
"""Text and lines that must be seen; on a Lab page the theme's font colour."""
MUTED = "#6A737D"
"""Secondary text, marks of no state; on a Lab page the theme's secondary font colour."""
SURFACE = "#FFFFFE"
"""What lies behind a figure; on a Lab page the theme's background."""
ACCENT = "#1976D3"
"""What the reader has chosen; on a Lab page the theme's brand colour."""
FREE = "rgba(128, 136, 146, 0.14)"
OVERLAP = "rgba(128, 136, 146, 0.34)"
WAITING = "rgba(213, 94, 0, 0.28)"
GRID = "rgba(128, 136, 146, 0.22)"
TRANSPARENT = "rgba(0, 0, 0, 0)"

PALETTE = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILLION, YELLOW, BROWN)
"""For series without a meaning of their own, in this order."""


def request_number(request_id: str) -> int:
    """Return a number that stays with a request over all steps and figures: "request-12" is 12, samples of it differ."""
    base, _, sample = request_id.partition("#")
    digits = base.rpartition("-")[2]
    number = int(digits) if digits.isdecimal() else zlib.crc32(base.encode())
    return number + (3 * int(sample) if sample.isdecimal() else 0)


def request_colour(request_id: str) -> str:
    """Return the colour of a request, the same in every figure; eight requests in a row get different ones."""
    return PALETTE[request_number(request_id) % len(PALETTE)]


def short_name(request_id: str) -> str:
    """Return a name that fits into a block of the map: "request-12#1" becomes "r12#1"."""
    base, sign, sample = request_id.partition("#")
    head, _, digits = base.rpartition("-")
    return f"r{digits}{sign}{sample}" if head == "request" and digits.isdecimal() else request_id[:6]


def with_alpha(colour: str, alpha: float) -> str:
    """Return "#RRGGBB" as an rgba() colour; on a transparent background that is a tint on any theme."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, {alpha})"


def _axis() -> dict[str, Any]:
    return {
        "gridcolor": GRID,
        "linecolor": MUTED,
        "zeroline": False,
        "showline": False,
        "ticks": "outside",
        "ticklen": 5,
        "tickcolor": TRANSPARENT,
        "automargin": False,
        "ticklabeloverflow": "allow",
        "title": {"standoff": 8, "font": {"size": 12, "color": MUTED}},
        "tickfont": {"size": 11},
    }


TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": "system-ui, -apple-system, 'Segoe UI', sans-serif", "size": 12, "color": INK},
        "paper_bgcolor": TRANSPARENT,
        "plot_bgcolor": TRANSPARENT,
        "colorway": list(PALETTE),
        "margin": {"l": 64, "r": 16, "t": 32, "b": 48},
        "hovermode": "closest",
        "hoverlabel": {"align": "left", "bgcolor": SURFACE, "bordercolor": MUTED, "font": {"color": INK, "size": 12}},
        "legend": {
            "orientation": "h",
            "x": 0,
            "xanchor": "left",
            "y": 1.02,
            "yanchor": "bottom",
            "bgcolor": TRANSPARENT,
            "itemsizing": "constant",
            "font": {"size": 11},
        },
        "xaxis": _axis(),
        "yaxis": _axis(),
        "bargap": 0.15,
        "dragmode": False,
    }
)
"""Every figure that a panel shows gets it, whatever template it was drawn with."""
