"""What a compiled kernel takes of a GPU's multiprocessor, and what of it stays idle."""

from typing import Any

import plotly.graph_objects as go

from infra_lab.widgets import theme
from kernels.compile import TARGETS, WARP, Compiled

MOST_REGISTERS = 255
"""That one thread can have."""


def kernel_resources(made: Compiled) -> Any:
    """Return a bar for each thing that limits how many program instances a multiprocessor holds, and the occupancy.

    A bar is a share of what there is; one over its limit is red, and reaches the edge.
    """
    limits = TARGETS[made.target]
    blocks = made.blocks_per_multiprocessor
    registers = blocks * made.num_warps * WARP * made.registers
    shared = blocks * made.shared_bytes
    rows = [
        ("registers a thread", made.registers / MOST_REGISTERS, f"{made.registers} of {MOST_REGISTERS}"),
        (
            "shared memory a program",
            made.shared_bytes / limits.block_shared_bytes,
            f"{made.shared_bytes / 1024:.1f} of {limits.block_shared_bytes / 1024:.0f} KiB",
        ),
        ("all registers", registers / limits.registers, f"{registers:,} of {limits.registers:,}"),
        (
            "all shared memory",
            shared / limits.shared_bytes,
            f"{shared / 1024:.0f} of {limits.shared_bytes / 1024:.0f} KiB",
        ),
        (
            "occupancy",
            made.occupancy,
            f"{blocks} × {made.num_warps} = {blocks * made.num_warps} of {limits.warps} warps",
        ),
    ]
    names, shares, texts = zip(*rows, strict=True)
    bad = [share > 1 or (name == "occupancy" and not share) for name, share in zip(names, shares, strict=True)]
    if made.spill_bytes:
        bad[0] = True
        texts = (f"{texts[0]}, and {made.spill_bytes} bytes spilled", *texts[1:])
    colours = [theme.VERMILLION if is_bad else theme.BLUE for is_bad in bad]
    colours[-1] = theme.VERMILLION if bad[-1] else theme.GREEN
    bars = {
        "type": "bar",
        "orientation": "h",
        "y": list(names),
        "x": [min(share, 1.0) for share in shares],
        "text": list(texts),
        "textposition": "auto",
        "insidetextanchor": "start",
        "insidetextfont": {"color": "white"},
        "showlegend": False,
        "marker": {"color": colours},
        "hovertemplate": "%{y}: %{text}<extra></extra>",
    }
    layout = {
        "template": theme.TEMPLATE,
        "height": 230,
        "margin": {"t": 8, "b": 36, "l": 170, "r": 24},
        "xaxis": {"range": [0, 1.3], "tickformat": ".0%", "tickvals": [0, 0.25, 0.5, 0.75, 1]},  # room for texts
        "yaxis": {"autorange": "reversed"},
    }
    return go.Figure([bars], layout)
