"""When requests arrive: seeded random processes, each with times in seconds from 0 on.

    Poisson    independent users: exponential gaps, coefficient of variation (CV) 1
    gamma      the same rate in bursts: gaps of a gamma distribution with a CV of one's choice (BurstGPT, Wang 2024, fits such)
    diurnal    Poisson, with a rate that follows the hour of the day
    spike      Poisson, with a rate that is ten times as high for a while

The last two are drawn by thinning (Lewis & Shedler 1979): candidates come at the highest rate there is, and one at time t is
kept with probability rate(t) / highest rate.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from infra_lab.errors import ConfigError

MAX_ARRIVALS = 10_000_000
"""Of one call, 80 MB of times."""
DAY_S = 86_400.0
_BATCH = 65_536
_Times = npt.NDArray[np.float64]


class _Batch(NamedTuple):
    times_s: _Times
    until_s: float
    """All arrivals up to here are among these, or were in the batches before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrivalProcess(ABC):
    """A process of arrivals. The same settings and seed give the same times."""

    rate_per_s: float
    """Requests a second, on average or outside the spike."""
    kind: ClassVar[str]

    def __post_init__(self) -> None:
        _check_positive("rate_per_s", self.rate_per_s)

    @abstractmethod
    def _batches(self, rng: np.random.Generator) -> Iterator[_Batch]:
        """Yield ascending times, batch after batch, without end."""

    def times_s(
        self, *, num_requests: int | None = None, duration_s: float | None = None, seed: int = 0
    ) -> list[float]:
        """Return ascending times: so many, or all before `duration_s`, or whichever is less.

        Raises ConfigError if neither is given, for impossible ones, and for more than `MAX_ARRIVALS`.
        """
        if num_requests is None and duration_s is None:
            raise ConfigError("give num_requests, duration_s, or both: an arrival process has no end of its own")
        if num_requests is not None and not 1 <= num_requests <= MAX_ARRIVALS:
            raise ConfigError(f"num_requests is {num_requests}; it must be from 1 to {MAX_ARRIVALS}")
        if duration_s is not None:
            _check_positive("duration_s", duration_s)
        end_s = math.inf if duration_s is None else duration_s
        parts: list[_Times] = []
        missing = MAX_ARRIVALS + 1 if num_requests is None else num_requests
        for batch in self._batches(np.random.default_rng(seed)):
            parts.append(batch.times_s[batch.times_s < end_s][:missing])
            missing -= len(parts[-1])
            if not missing or batch.until_s >= end_s:
                break
        times: list[float] = np.concatenate(parts).tolist()
        if len(times) > MAX_ARRIVALS:
            raise ConfigError(f"duration_s = {duration_s} brings more than {MAX_ARRIVALS} requests; give num_requests")
        return times


@dataclass(frozen=True, slots=True, kw_only=True)
class PoissonArrivals(ArrivalProcess):
    """Exponential gaps of mean 1 / rate."""

    kind: ClassVar[str] = "poisson"

    def _batches(self, rng: np.random.Generator) -> Iterator[_Batch]:
        now_s = 0.0
        while True:
            times = now_s + np.cumsum(rng.exponential(1 / self.rate_per_s, _BATCH))
            now_s = float(times[-1])
            yield _Batch(times, now_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class GammaArrivals(ArrivalProcess):
    """Gamma gaps of mean 1 / rate and standard deviation CV / rate: shape 1/CV², scale CV²/rate.

    CV 1 is Poisson, above it requests come in bursts, below it more evenly. (The load generator's `burstiness` is 1/CV².)
    """

    kind: ClassVar[str] = "gamma"
    cv: float = 2.0

    def __post_init__(self) -> None:
        ArrivalProcess.__post_init__(self)
        _check_positive("cv", self.cv)

    def _batches(self, rng: np.random.Generator) -> Iterator[_Batch]:
        now_s, square = 0.0, self.cv**2
        while True:
            times = now_s + np.cumsum(rng.gamma(1 / square, square / self.rate_per_s, _BATCH))
            now_s = float(times[-1])
            yield _Batch(times, now_s)


class _ThinnedArrivals(ArrivalProcess):
    """Poisson arrivals whose rate changes with time."""

    __slots__ = ()

    @property
    @abstractmethod
    def peak_rate_per_s(self) -> float:
        """No rate is higher."""

    @abstractmethod
    def rates_at(self, times_s: _Times) -> _Times:
        """Return the rate at each time, in requests a second."""

    def _batches(self, rng: np.random.Generator) -> Iterator[_Batch]:
        now_s, peak = 0.0, self.peak_rate_per_s
        while True:
            times = now_s + np.cumsum(rng.exponential(1 / peak, _BATCH))
            now_s = float(times[-1])
            yield _Batch(times[rng.random(_BATCH) * peak < self.rates_at(times)], now_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class DiurnalArrivals(_ThinnedArrivals):
    """A day, repeated: a sine around the mean rate, or a profile of 24 hourly weights. Starts at midnight.

    The sine is lowest at midnight and highest half a period later: rate · (1 - amplitude · cos(2πt / period)).
    """

    kind: ClassVar[str] = "diurnal"
    amplitude: float = 0.5
    """0 is Poisson; 1 comes to rest at midnight."""
    period_s: float = DAY_S
    hourly: tuple[float, ...] = ()
    """Instead of the sine: weights of equal parts of the period, in any unit; the mean rate stays `rate_per_s`."""

    def __post_init__(self) -> None:
        ArrivalProcess.__post_init__(self)
        _check_positive("period_s", self.period_s)
        if not 0.0 <= self.amplitude <= 1.0:
            raise ConfigError(f"amplitude is {self.amplitude}; it must be from 0 to 1")
        if self.hourly and not (all(0 <= w < math.inf for w in self.hourly) and sum(self.hourly) > 0):
            raise ConfigError(f"hourly is {self.hourly}; expected weights that are not negative, and not all 0")

    @property
    def peak_rate_per_s(self) -> float:
        """The rate at noon, or in the busiest hour."""
        if self.hourly:
            return self.rate_per_s * max(self.hourly) * len(self.hourly) / sum(self.hourly)
        return self.rate_per_s * (1 + self.amplitude)

    def rates_at(self, times_s: _Times) -> _Times:
        """Return the rate at each time."""
        phase = times_s / self.period_s % 1.0
        if self.hourly:
            weights = np.asarray(self.hourly, dtype=np.float64)
            share: _Times = weights[(phase * len(weights)).astype(np.int64)] / weights.mean()
            return self.rate_per_s * share
        sine: _Times = self.rate_per_s * (1 - self.amplitude * np.cos(2 * np.pi * phase))
        return sine


@dataclass(frozen=True, slots=True, kw_only=True)
class SpikeArrivals(_ThinnedArrivals):
    """A steady rate, `factor` times as high from `start_s` for `spike_s` seconds."""

    kind: ClassVar[str] = "spike"
    start_s: float
    spike_s: float
    factor: float = 10.0

    def __post_init__(self) -> None:
        ArrivalProcess.__post_init__(self)
        _check_positive("spike_s", self.spike_s)
        if not 0 <= self.start_s < math.inf:
            raise ConfigError(f"start_s is {self.start_s}; it must be 0 or a positive number")
        if not 1 <= self.factor < math.inf:
            raise ConfigError(f"factor is {self.factor}; a spike must be at least 1 times as high")

    @property
    def peak_rate_per_s(self) -> float:
        """The rate in the spike."""
        return self.rate_per_s * self.factor

    def rates_at(self, times_s: _Times) -> _Times:
        """Return the rate at each time."""
        is_spike = (times_s >= self.start_s) & (times_s < self.start_s + self.spike_s)
        return np.where(is_spike, self.peak_rate_per_s, self.rate_per_s)


ARRIVALS: dict[str, type[ArrivalProcess]] = {
    process.kind: process for process in (PoissonArrivals, GammaArrivals, DiurnalArrivals, SpikeArrivals)
}
"""By the name that configuration files use."""


def _check_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ConfigError(f"{name} is {value}; it must be a positive number")
