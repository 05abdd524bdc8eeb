"""Where the KV memory goes, step by step: slots that hold a token, slots reserved for nothing, slots nobody has."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from infra_lab.engine.recorder import StepRecord
from infra_lab.errors import ConfigError
from infra_lab.paged_kv.snapshot import BlockState
from infra_lab.widgets import theme

_LEVELS = (
    ("holds a token", theme.USED, 0.75),
    ("reserved, empty", theme.PREEMPTED, 0.45),
    ("cached, may be evicted", theme.CACHED, 0.45),
)


def kv_usage(steps: Sequence[StepRecord]) -> Any:
    """Return a figure of the pool's slots over the steps, stacked, with the requests that run and wait below.

    Raises ConfigError if the records carry no KV map: set `recorder.keep_kv_maps` before the run.
    """
    maps = [step.kv_map for step in steps if step.kv_map is not None]
    if not maps or len(maps) != len(steps):
        raise ConfigError(
            "these steps were recorded without KV maps; set llm.recorder.keep_kv_maps = True before the run"
        )
    x = np.array([step.step for step in steps])
    edges = np.append(x, x[-1] + 1) - 0.5
    stored = np.array([kv_map.stored_tokens for kv_map in maps])
    reserved = np.array([kv_map.reserved_tokens for kv_map in maps])
    cached = np.array([kv_map.count(BlockState.CACHED) * kv_map.block_size for kv_map in maps])
    total = len(maps[0].blocks) * maps[0].block_size
    data: list[dict[str, Any]] = []
    floor = np.zeros(len(steps))
    for (name, colour, alpha), amount in zip(_LEVELS, (stored, reserved - stored, cached), strict=True):
        data.append(
            {
                "type": "bar",
                "name": name,
                "x": x,
                "y": amount,
                "base": floor,
                "width": 1.0,
                "marker": {"color": theme.with_alpha(colour, alpha), "line": {"width": 0}},
                "hovertemplate": f"step %{{x}}: %{{y}} slots<extra>{name}</extra>",
            }
        )
        floor = floor + amount
    for name, colour, dash, counts in (
        ("requests running", theme.DECODE, "solid", [step.num_running for step in steps]),
        ("requests waiting", theme.MUTED, "dot", [step.num_waiting for step in steps]),
    ):
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": name,
                "x": edges,
                "y": np.array([*counts, counts[-1]]),
                "yaxis": "y2",
                "line": {"color": colour, "width": 2, "dash": dash, "shape": "hv"},
                "hovertemplate": f"%{{y}}<extra>{name}</extra>",
            }
        )
    layout = {
        "template": theme.TEMPLATE,
        "height": 380,
        "barmode": "overlay",
        "bargap": 0,
        "xaxis": {"title": {"text": "step"}, "range": [edges[0], edges[-1]], "anchor": "y2"},
        "yaxis": {"title": {"text": "KV slots"}, "range": [0, total], "domain": [0.42, 1.0]},
        "yaxis2": {"title": {"text": "requests"}, "rangemode": "tozero", "domain": [0.0, 0.32]},
    }
    return go.Figure(data, layout)
