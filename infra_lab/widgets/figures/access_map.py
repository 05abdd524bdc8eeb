"""Tensors as grids of elements: which are loaded, how often, and which are stored."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go

from infra_lab.widgets import theme
from infra_lab.widgets.figures.parts import legend_key

_GAP = 0.05
_UNTOUCHED, _STORED = 0.0, -1.0


class Touched(NamedTuple):
    """One tensor, all but its last dimension as rows."""

    name: str
    loads: npt.NDArray[np.int64]
    """[rows, columns]: how often each element was loaded."""
    stores: npt.NDArray[np.int64]


def access_map(tensors: Sequence[Touched]) -> Any:
    """Return a figure of the tensors side by side, as wide as they have columns; the more often loaded, the darker."""
    most = max([1, *(int(tensor.loads.max(initial=0)) for tensor in tensors)])
    widths = np.array([max(tensor.loads.shape[1], 12) for tensor in tensors], np.float64)
    widths *= (1 - _GAP * (len(tensors) - 1)) / widths.sum()
    lefts = np.concatenate([[0.0], np.cumsum(widths + _GAP)[:-1]])
    data: list[dict[str, Any]] = []
    layout: dict[str, Any] = {"template": theme.TEMPLATE, "height": 380, "margin": {"t": 56, "l": 44, "r": 12, "b": 36}}
    layout["annotations"] = []
    for i, (tensor, left, width) in enumerate(zip(tensors, lefts, widths, strict=True)):
        suffix = "" if i == 0 else str(i + 1)
        data.append(_grid(tensor, suffix, most))
        layout[f"xaxis{suffix}"] = {
            "domain": [left, left + width],
            "anchor": f"y{suffix}",
            "showgrid": False,
            "nticks": 4,
        }
        layout[f"yaxis{suffix}"] = {
            "anchor": f"x{suffix}",
            "autorange": "reversed",
            "showgrid": False,
            "nticks": 6,
        }
        layout["annotations"].append(_name(tensor, left + width / 2))
    data += [
        legend_key("loaded once" if most == 1 else f"loaded, up to {most} times", theme.BLUE, True),
        legend_key("stored", theme.ORANGE, any(bool(tensor.stores.any()) for tensor in tensors)),
        legend_key("not touched", theme.FREE, True),
    ]
    layout["legend"] = {"y": 1.12}
    return go.Figure(data, layout)


def _grid(tensor: Touched, suffix: str, most: int) -> dict[str, Any]:
    shown = np.where(tensor.stores > 0, _STORED, tensor.loads / most)
    pale = theme.with_alpha(theme.BLUE, 0.35)
    first = 0.5 + 0.5 * min(1 / most, 1.0) * 0.98
    some = 0.5 + 0.25 / most  # between no load and one
    scale = [[0, theme.ORANGE], [0.25, theme.ORANGE], [0.25, theme.FREE], [some, theme.FREE]]
    scale += [[some, pale], [first, theme.BLUE if most == 1 else pale], [1, theme.BLUE]]
    return {
        "type": "heatmap",
        "z": shown.astype(np.float32),
        "customdata": tensor.loads.astype(np.int32),
        "zmin": -1,
        "zmax": 1,
        "colorscale": scale,
        "showscale": False,
        "xaxis": f"x{suffix}",
        "yaxis": f"y{suffix}",
        "name": tensor.name,
        "hovertemplate": f"{tensor.name}[%{{y}}, %{{x}}]<br>loaded %{{customdata}} times<extra></extra>",
    }


def _name(tensor: Touched, centre: float) -> dict[str, Any]:
    rows, columns = tensor.loads.shape
    return {
        "text": f"<b>{tensor.name}</b> {rows} × {columns}",
        "xref": "paper",
        "yref": "paper",
        "x": centre,
        "y": 1,
        "yanchor": "bottom",
        "showarrow": False,
    }
