"""Which elements of its tensors a kernel's program instances load and store: one program at a time, or all together."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from infra_lab.errors import ConfigError, InfraLabError
from infra_lab.widgets.figures.access_map import Touched, access_map
from infra_lab.widgets.knobs import knob
from infra_lab.widgets.live_tuner import LiveTuner
from kernels.triton_api import HAS_TRITON, is_interpreting

_PATIENCE_S = 120


class Watched(NamedTuple):
    """A launch that was watched in Triton's interpreter."""

    shapes: dict[str, tuple[int, ...]]
    programs: list[tuple[int, int, int]]
    loads: dict[str, npt.NDArray[np.int32]]
    """For each tensor [programs, elements]: how often a program loads an element."""
    stores: dict[str, npt.NDArray[np.int32]]


@cache
def watch(name: str) -> Watched:
    """Run a demo of `kernels.demos`, in a process of its own if this one does not interpret.

    Raises ConfigError for a name that there is none of.
    """
    from kernels.demos import DEMOS, report

    if name not in DEMOS:
        raise ConfigError(f"there is no demo {name!r}; there are {', '.join(DEMOS)}")
    content = report(name) if HAS_TRITON and is_interpreting() else _report_of_another_process(name)
    shapes = {tensor: tuple(shape) for tensor, shape in content["shapes"].items()}
    programs = sorted({tuple(program) for program, *_ in content["accesses"]})
    counts = {
        kind: {tensor: np.zeros((len(programs), int(np.prod(shape))), np.int32) for tensor, shape in shapes.items()}
        for kind in ("load", "store")
    }
    for program, kind, tensor, offsets in content["accesses"]:
        np.add.at(counts[kind][tensor][programs.index(tuple(program))], offsets, 1)
    return Watched(shapes, programs, counts["load"], counts["store"])


def _report_of_another_process(name: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "kernels.demos", name]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=_PATIENCE_S)
    if done.returncode:
        raise InfraLabError(f"the interpreter failed: {done.stderr.strip().splitlines()[-1:]}")
    content: dict[str, Any] = json.loads(done.stdout)
    return content


def access_panel(name: str, *, title: str = "Who touches what?") -> LiveTuner[Any, list[Touched]]:
    """Return a panel over one demo's program instances; its tensors are drawn as grids, all but the last dimension as rows.

    For one program: what it loads and stores. For all: how often each element is loaded, which is what a cache is for. Raises
    ConfigError for a name that there is none of.
    """
    watched = watch(name)

    @dataclass(frozen=True)
    class Which:
        program: int = knob(
            0, low=0, high=max(len(watched.programs) - 1, 1), label="Program", help="In the order of their ids"
        )
        together: bool = knob(False, label="All programs together", help="Count how often each element is loaded")

    def compute(which: Which) -> list[Touched]:
        rows = slice(None) if which.together else slice(which.program, which.program + 1)
        return [
            Touched(
                tensor,
                watched.loads[tensor][rows].sum(axis=0).reshape(-1, shape[-1]),
                watched.stores[tensor][rows].sum(axis=0).reshape(-1, shape[-1]),
            )
            for tensor, shape in watched.shapes.items()
        ]

    def summarize(touched: list[Touched]) -> str:
        loads = sum(int(one.loads.sum()) for one in touched)
        distinct = sum(int((one.loads > 0).sum()) for one in touched)
        stores = sum(int(one.stores.sum()) for one in touched)
        again = f", each {loads / distinct:.1f} times" if distinct and loads > distinct else ""
        return f"{len(watched.programs)} programs in all. Loaded: {distinct:,} elements{again}. Stored: {stores:,}."

    return LiveTuner(Which, compute, access_map, summarize=summarize, title=f"{title} {name}")
