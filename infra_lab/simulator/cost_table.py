"""A step's time from a table of measurements: (tokens computed, keys read) -> seconds, interpolated."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from infra_lab.errors import ConfigError
from infra_lab.scheduler.plan import StepPlan
from infra_lab.simulator.cost import StepShape


class _Place(NamedTuple):
    below: int
    fraction: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TableStepCost:
    """Bilinear between four neighbours; beyond the table's edge the edge's value, never an extrapolation.

    So a table must reach as far as its use does: a step larger than any that was measured is predicted too fast. Both axes
    ascend strictly. Raises ConfigError for a table that is none, naming the row.
    """

    tokens: tuple[int, ...]
    """Tokens computed in a step; one at least."""
    context: tuple[int, ...]
    """Keys read in a step, the sum over its chunks of start + tokens, as in `LinearStepCost`."""
    seconds: tuple[tuple[float, ...], ...]
    """[tokens][context]."""

    def __post_init__(self) -> None:
        for name, axis in (("tokens", self.tokens), ("context", self.context)):
            if not axis or any(a >= b for a, b in pairwise(axis)) or axis[0] < 0:
                raise ConfigError(f"{name} is {list(axis)}; expected ascending numbers, none negative or twice there")
        if len(self.seconds) != len(self.tokens):
            raise ConfigError(f"seconds has {len(self.seconds)} rows; tokens has {len(self.tokens)} entries")
        for number, row in zip(self.tokens, self.seconds, strict=True):
            if len(row) != len(self.context):
                raise ConfigError(f"seconds of {number} tokens has {len(row)} entries; context has {len(self.context)}")
            if not all(0 <= value < math.inf for value in row):
                raise ConfigError(f"seconds of {number} tokens is {list(row)}; expected numbers from 0 on")

    def step_s(self, plan: StepPlan) -> float:
        """Return the seconds that the plan takes."""
        return self.shape_s(StepShape.of(plan))

    def shape_s(self, shape: StepShape) -> float:
        """Return the seconds that a step of this shape takes."""
        return self.seconds_at(shape.num_tokens, shape.context)

    def seconds_at(self, num_tokens: float, context: float) -> float:
        """Return the interpolated seconds."""
        (i, u), (j, v) = _place(self.tokens, num_tokens), _place(self.context, context)
        lower = self.seconds[i]
        upper = self.seconds[min(i + 1, len(self.tokens) - 1)]
        right = min(j + 1, len(self.context) - 1)
        return (1 - u) * ((1 - v) * lower[j] + v * lower[right]) + u * ((1 - v) * upper[j] + v * upper[right])


def _place(axis: Sequence[int], value: float) -> _Place:
    """Return the neighbour below, and how far it is to the next one: 0 to 1."""
    index = bisect_right(axis, value) - 1
    if index < 0:
        return _Place(0, 0.0)
    if index == len(axis) - 1:
        return _Place(index, 0.0)
    return _Place(index, (value - axis[index]) / (axis[index + 1] - axis[index]))
