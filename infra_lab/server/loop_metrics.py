"""A histogram and a counter that cost a token next to nothing.

The client library's take a lock, and walk over buckets: 3 µs for every token of every stream. These belong to one thread
(the event loop, which also answers the scrape), so they are a search and a few additions.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class LoopHistogram(Collector):
    """Counts values by upper bound, as Prometheus has it: a value equal to a bound belongs to it."""

    def __init__(self, name: str, help_text: str, labels: dict[str, str], bounds: Sequence[float]) -> None:
        """`bounds` ascend; the one for all the rest is added."""
        self._name, self._help, self._labels = name, help_text, labels
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def collect(self) -> Iterator[Metric]:
        """Yield the counts up to each bound."""
        names = [*map(floatToGoString, self._bounds), "+Inf"]
        family = HistogramMetricFamily(self._name, self._help, labels=list(self._labels))
        buckets = list(zip(names, map(float, accumulate(self._counts)), strict=True))
        family.add_metric(list(self._labels.values()), buckets, self._sum)
        yield family


class LoopCounter(Collector):
    """Counts up from zero."""

    def __init__(self, name: str, help_text: str, labels: dict[str, str]) -> None:
        self._name, self._help, self._labels = name, help_text, labels
        self._value = 0.0

    def inc(self, amount: float = 1.0) -> None:
        """Add to it."""
        self._value += amount

    def collect(self) -> Iterator[Metric]:
        """Yield the count."""
        family = CounterMetricFamily(self._name, self._help, labels=list(self._labels))
        family.add_metric(list(self._labels.values()), self._value)
        yield family
