"""The KV pool as a grid: a cell for each physical block, who owns it and how full it is."""

from collections.abc import Collection, Iterable
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go

from infra_lab.engine.kv_map import BlockView, KVMap
from infra_lab.paged_kv.snapshot import BlockState
from infra_lab.widgets import theme
from infra_lab.widgets.figures.parts import joints, legend_key

MOST_NUMBERED = 128
"""So many blocks have their numbers and owners written into them."""
_MOST_GAUGES = 512
_MOST_SIGNS = 1024
HALF = 0.43
"""Half a cell without its gap, in units of a cell."""
_FREE, _CACHED, _FIRST_OWNER, _SHARED = 0, 1, 2, 2 + len(theme.PALETTE)


def kv_block_map(kv_map: KVMap, *, selected: int | None = None, highlight: Collection[int] | None = None) -> Any:
    """Return a figure of all blocks of the pool, row by row, with the number of each state in the legend.

    A used block has its owner's colour, which is the request's colour in every figure, the owner's short name ("r3"), and a
    gauge of how many of its slots are filled. A shared one has a bold border and a gauge for each of its owners: after a
    copy-on-write, the border is gone and the copy is outlined (`highlight`). A cached block bears the sign ◇. Beyond 128
    blocks there is no room for names, beyond 512 none for gauges; all of it is in the hover text.
    """
    count = len(kv_map.blocks)
    columns = num_columns(count)
    row, column = np.divmod(np.arange(count), columns)
    rank = {block: place for place, block in enumerate(kv_map.eviction_order)}
    shared = [block for block, view in enumerate(kv_map.blocks) if view.ref_count > 1]
    copied = sorted(highlight or ())
    num_used = kv_map.count(BlockState.USED)
    cells = {
        "type": "heatmap",
        "x": column.astype(np.float32),
        "y": row.astype(np.float32),
        "z": np.array([_code(view) for view in kv_map.blocks], np.float32),
        "zmin": -0.5,
        "zmax": _SHARED + 0.5,
        "colorscale": _COLOURS,
        "showscale": False,
        "text": [_hover(kv_map, block, rank.get(block)) for block in range(count)],
        "hovertemplate": "%{text}<extra></extra>",
    }
    data = [
        cells,
        _gauges(kv_map, columns),
        _joints(count, columns),
        _outlines(shared, columns, theme.INK, 2.0),
        _outlines(copied, columns, theme.COPIED, 3.0, "dot"),
        _outlines(() if selected is None else (selected,), columns, theme.ACCENT, 3.5),
        _texts(kv_map, row, column),
        legend_key(f"free {kv_map.count(BlockState.FREE)}", theme.FREE, True),
        legend_key(f"◇ cached, may be evicted {len(rank)}", theme.CACHED, True),
        legend_key(f"in use {num_used}, in the owner's colour", theme.with_alpha(theme.BLUE, 0.5), True),
        legend_key(f"shared {len(shared)} of these", theme.OVERLAP, True, edge=theme.INK),
        legend_key("copied on write in this step", theme.FREE, bool(copied), edge=theme.COPIED),
    ]
    return go.Figure(data, _layout(count, columns))


def num_columns(count: int) -> int:
    """Return how many blocks stand in a row of the map."""
    return next(columns for columns, most in ((max(count, 1), 12), (16, 128), (32, 512), (64, count)) if count <= most)


def block_at(x: float, y: float, count: int) -> int | None:
    """Return the block at a place of the map, or None beside it."""
    column, row = round(x), round(y)
    columns = num_columns(count)
    block = row * columns + column
    return block if 0 <= column < columns and 0 <= block < count else None


def _code(view: BlockView) -> int:
    if view.state is BlockState.FREE:
        return _FREE
    if view.state is BlockState.CACHED:
        return _CACHED
    if view.ref_count > 1 or not view.users:
        return _SHARED
    return _FIRST_OWNER + theme.request_number(view.users[0].request_id) % len(theme.PALETTE)


def _bands(colours: Iterable[str]) -> list[list[Any]]:
    """A colour scale that gives the codes 0, 1, 2, … a colour each, without anything between them."""
    names = list(colours)
    return [[(i + end) / len(names), name] for i, name in enumerate(names) for end in (0, 1)]


_COLOURS = _bands(
    (
        theme.FREE,
        theme.with_alpha(theme.CACHED, 0.25),
        *(theme.with_alpha(colour, 0.25) for colour in theme.PALETTE),
        theme.OVERLAP,
    )
)


def _gauges(kv_map: KVMap, columns: int) -> dict[str, Any]:
    """One bar for each claim on a block: its length is the filled part of the block's slots."""
    x, y, base, thickness, colours = [], [], [], [], []
    for block, view in enumerate(kv_map.blocks if len(kv_map.blocks) <= _MOST_GAUGES else ()):
        row, column = divmod(block, columns)
        fills = [(use.num_tokens, theme.request_colour(use.request_id)) for use in view.users[:3]]
        if view.state is BlockState.CACHED:
            fills = [(kv_map.block_size, theme.CACHED)]
        for place, (num_tokens, colour) in enumerate(fills):
            height = 0.24 / len(fills)
            x.append(2 * (HALF - 0.03) * num_tokens / kv_map.block_size)
            base.append(column - HALF + 0.03)
            y.append(row + 0.14 + (place + 0.5) * height)
            thickness.append(height * 0.8)
            colours.append(colour)
    return {
        "type": "bar",
        "orientation": "h",
        "x": np.array(x, np.float64),
        "y": np.array(y, np.float64),
        "base": np.array(base, np.float64),
        "width": np.array(thickness, np.float64),
        "marker": {"color": colours, "line": {"width": 0}},
        "showlegend": False,
        "hoverinfo": "skip",
    }


def _joints(count: int, columns: int) -> dict[str, Any]:
    rows = -(-count // columns)
    return joints(
        np.arange(1, columns) - 0.5,
        np.arange(1, rows) - 0.5,
        x=(-0.5, columns - 0.5),
        y=(-0.5, rows - 0.5),
        width=3 if count <= _MOST_GAUGES else 1,
    )


def _outlines(blocks: Collection[int], columns: int, colour: str, width: float, dash: str = "solid") -> dict[str, Any]:
    """All outlines of one kind as a single line with gaps."""
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1], [-1, -1], [np.nan, np.nan]]) * HALF
    centres = np.array([[block % columns, block // columns] for block in blocks], np.float64).reshape(-1, 1, 2)
    points = (centres + corners).reshape(-1, 2)
    return {
        "type": "scatter",
        "mode": "lines",
        "x": points[:, 0].copy(),
        "y": points[:, 1].copy(),
        "line": {"color": colour, "width": width, "dash": dash},
        "showlegend": False,
        "hoverinfo": "skip",
    }


def _texts(kv_map: KVMap, row: Any, column: Any) -> dict[str, Any]:
    count = len(kv_map.blocks)
    is_numbered = count <= MOST_NUMBERED
    if is_numbered:
        text = [f"<b>{block}</b><br>{_owners(view)}" for block, view in enumerate(kv_map.blocks)]
    else:
        has_room = count <= _MOST_SIGNS
        text = ["◇" if has_room and view.state is BlockState.CACHED else "" for view in kv_map.blocks]
    return {
        "type": "scatter",
        "mode": "text",
        "x": column.astype(np.float64),
        "y": row - (0.16 if is_numbered else 0.0),
        "text": text,
        "textfont": {"size": 10, "color": theme.INK},
        "showlegend": False,
        "hoverinfo": "skip",
    }


def _owners(view: BlockView) -> str:
    if view.state is not BlockState.USED:
        return "◇" if view.state is BlockState.CACHED else "·"
    names = [escape(theme.short_name(use.request_id)) for use in view.users]
    return " ".join(names) if len(names) <= 2 else f"{names[0]} +{len(names) - 1}"


def _hover(kv_map: KVMap, block: int, rank: int | None) -> str:
    view = kv_map.blocks[block]
    lines = [f"block {block}: {view.state.value}" + (f", shared by {view.ref_count}" if view.ref_count > 1 else "")]
    for use in view.users:
        where = f"table index {use.table_index}, {use.num_tokens} of {kv_map.block_size} tokens"
        lines.append(f"{escape(use.request_id)}: {where}")
    if rank is not None:
        lines.append(f"number {rank + 1} of {len(kv_map.eviction_order)} to be evicted")
    if view.is_matchable:
        lines.append("a later request with the same prefix finds it")
    return "<br>".join(lines)


def _layout(count: int, columns: int) -> dict[str, Any]:
    rows = -(-count // columns)
    row_px = 50 if count <= MOST_NUMBERED else 26 if count <= _MOST_GAUGES else 14
    hidden = {"visible": False, "showgrid": False, "fixedrange": True}
    return {
        "template": theme.TEMPLATE,
        "height": 34 + rows * row_px + 8,
        "margin": {"t": 34, "b": 8, "l": 4, "r": 4},
        "barmode": "overlay",
        "xaxis": {**hidden, "range": [-0.5, columns - 0.5]},
        "yaxis": {**hidden, "range": [rows - 0.5, -0.5]},
    }
