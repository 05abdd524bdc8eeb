"""A distribution in a few numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

RANKS = (50, 90, 95, 99)


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Percentiles with linear interpolation, in the unit of the values."""

    count: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self | None:
        """Return None for no values: nothing has no percentile."""
        if not values:
            return None
        array = np.asarray(values, dtype=np.float64)
        p50, p90, p95, p99 = (float(value) for value in np.percentile(array, RANKS))
        return cls(array.size, float(array.mean()), p50, p90, p95, p99, float(array.max()))
