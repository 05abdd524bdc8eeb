"""What a model says comes next, what temperature and filters leave of it, and what was drawn."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go

from infra_lab.widgets import theme

FATES = ("kept", "dropped by top-k", "dropped by min-p", "dropped by top-p")
"""What becomes of a token: an index into this, in the order in which the engine filters."""
_COLOURS = (theme.USED, theme.BLUE, theme.PURPLE, theme.ORANGE)


@dataclass(frozen=True, slots=True)
class TokenDistribution:
    """One next-token distribution on its way to a draw. All arrays are [V], the most probable token first."""

    context: str
    """The text before the token."""
    labels: tuple[str, ...]
    """The first tokens, as they are shown; the others are drawn together as one bar."""
    model: npt.NDArray[np.float64]
    """The model's own probabilities: temperature 1, nothing filtered."""
    tempered: npt.NDArray[np.float64]
    """After the temperature."""
    final: npt.NDArray[np.float64]
    """After the filters: 0 where dropped, and what is left sums to 1."""
    fates: npt.NDArray[np.int64]
    """Index into FATES."""
    counts: npt.NDArray[np.int64]
    """How often the engine drew the token."""

    @property
    def num_kept(self) -> int:
        """Tokens that can be drawn."""
        return int((self.fates == 0).sum())

    @property
    def drawn(self) -> npt.NDArray[np.float64]:
        """Share of the draws, [V]."""
        return self.counts / max(int(self.counts.sum()), 1)

    def mass(self, fate: int) -> float:
        """Probability, after the temperature, of the tokens with that fate."""
        return float(self.tempered[self.fates == fate].sum())


def entropy_bits(probabilities: npt.NDArray[np.float64]) -> float:
    """Return the entropy in bits: how many yes-or-no questions the next token is worth on average."""
    some = probabilities[probabilities > 0]
    return float(-(some * np.log2(some)).sum()) + 0.0


def token_distribution(view: TokenDistribution) -> Any:
    """Return bars over the most probable tokens: the model's own, pale and wide; what is drawn from, coloured by fate.

    A kept token's bar is its final probability, a dropped one's what it had after the temperature. Diamonds are shares of
    the draws.
    """
    shown = len(view.labels)
    names = [*view.labels, f"+{len(view.model) - shown}"]

    # Lists: in a FigureWidget that changes while the browser draws, plotly 7 stumbles over arrays.
    def bars(values: npt.NDArray[np.float64]) -> list[float]:
        return [*values[:shown].tolist(), float(values[shown:].sum())]

    x = list(range(shown + 1))
    data: list[dict[str, Any]] = [_bars("the model's own", x, bars(view.model), theme.OVERLAP, 0.92, names)]
    for fate, (name, colour) in enumerate(zip(FATES, _COLOURS, strict=True)):
        values = np.where(view.fates == fate, view.final if fate == 0 else view.tempered, 0.0)
        tint = theme.with_alpha(colour, 1.0 if fate == 0 else 0.55)
        data.append(_bars(name, x, bars(values), tint, 0.6, names))
    data.append(
        {
            "type": "scatter",
            "name": f"share of {view.counts.sum():,} draws",
            "mode": "markers",
            "x": x,
            "y": bars(view.drawn),
            "marker": {
                "symbol": "diamond",
                "size": 7,
                "color": theme.INK,
                "line": {"width": 1, "color": theme.SURFACE},
            },
            "customdata": names,
            "hovertemplate": "%{customdata}: %{y:.1%} of the draws<extra></extra>",
        }
    )
    layout = {
        "template": theme.TEMPLATE,
        "height": 340,
        "barmode": "overlay",
        "showlegend": True,
        "xaxis": {"tickvals": x, "ticktext": names, "range": [-0.6, shown + 0.6], "showgrid": False},
        "yaxis": {"title": {"text": "probability"}, "tickformat": ".0%", "rangemode": "tozero"},
    }
    return go.Figure(data, layout)


def _bars(name: str, x: Any, y: Any, colour: str, width: float, names: list[str]) -> dict[str, Any]:
    return {
        "type": "bar",
        "name": name,
        "x": x,
        "y": y,
        "width": width,
        "marker": {"color": colour, "line": {"width": 0}},
        "customdata": names,
        "hovertemplate": f"%{{customdata}}: %{{y:.2%}}<extra>{name}</extra>",
    }
