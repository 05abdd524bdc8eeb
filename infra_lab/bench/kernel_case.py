"""What the suite `kernels` measures: a launch, what it must do at the least, and who else does it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from kernels.cost import Cost

Roof = Literal["copy", "bfloat16", "float8", "int8"]
"""Which measured ceiling a kernel stands under: bytes/s of a device copy, or FLOP/s of a large product."""


class Peer(NamedTuple):
    """Another way to the same result."""

    name: str
    run: Callable[[], Any]
    asked: float | None = None
    """How many times as fast ours must be."""
    is_anywhere: bool = True
    """Whether it runs without a GPU, so that a test can compare its result with ours."""


@dataclass(frozen=True, slots=True)
class Case:
    """One kernel at one shape."""

    name: str
    shape: str
    """In words, for the table."""
    ours: Callable[[], Any]
    cost: Cost
    roof: Roof
    asked: float | None = None
    """The share of the roof that is asked for."""
    peers: tuple[Peer, ...] = ()
    spec: str = ""
    """The name of the `KernelSpec` that it launches most of its work with: at the spec's own size its time is predicted."""
