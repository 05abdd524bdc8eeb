"""When requests arrive: a process that knows nothing of how the server is doing."""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, takewhile
from typing import Literal, get_args

from infra_lab.errors import ConfigError

ArrivalKind = Literal["poisson", "gamma", "constant"]
MAX_REQUESTS = 1_000_000
"""Of one run; all its prompts and records are held in memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrivals:
    """Gaps between arrivals, with mean 1 / rate. Raises ConfigError for settings that make no process.

        poisson    exponential gaps: independent users
        gamma      the same mean, other bursts: the gaps' coefficient of variation is burstiness^-½, so that
                   1 is Poisson, 0.25 comes in bursts (CV 2), and 100 is nearly a metronome
        constant   equal gaps

    An infinite rate is everything at once, which measures throughput and nothing else.
    """

    rate_per_s: float
    kind: ArrivalKind = "poisson"
    burstiness: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(ArrivalKind):
            raise ConfigError(f"arrivals are {self.kind!r}; known: {', '.join(get_args(ArrivalKind))}")
        if not self.rate_per_s > 0:
            raise ConfigError(f"rate is {self.rate_per_s:g} requests/s; it must be more than 0 (inf: all at once)")
        if not (0 < self.burstiness < math.inf):
            raise ConfigError(f"burstiness is {self.burstiness:g}; it must be more than 0 (1: Poisson, less: bursts)")
        if self.kind != "gamma" and self.burstiness != 1.0:
            raise ConfigError(
                f"burstiness is {self.burstiness:g}, but arrivals are {self.kind}; use gamma, or leave it out"
            )

    def times_s(
        self, *, num_requests: int | None = None, duration_s: float | None = None, seed: int = 0
    ) -> list[float]:
        """Return arrival times from 0 on, ascending: so many, or all before `duration_s`, or whichever is less.

        Raises ConfigError if neither is given, or for more than `MAX_REQUESTS`.
        """
        if num_requests is None and duration_s is None:
            raise ConfigError("give the number of requests, the duration in seconds, or both")
        if num_requests is not None and not 1 <= num_requests <= MAX_REQUESTS:
            raise ConfigError(f"the number of requests is {num_requests}; it must be from 1 to {MAX_REQUESTS}")
        if duration_s is not None and not (0 < duration_s < math.inf):
            raise ConfigError(f"the duration is {duration_s:g} s; it must be more than 0 and finite")
        times = islice(self._times_s(random.Random(f"arrivals {seed}")), (num_requests or MAX_REQUESTS + 1))
        chosen = list(times if duration_s is None else takewhile(lambda time: time < duration_s, times))
        if len(chosen) > MAX_REQUESTS:
            raise ConfigError(
                f"{self.rate_per_s:g} requests/s for {duration_s} s are more than {MAX_REQUESTS} requests; "
                "lower the rate or the duration, or give the number of requests"
            )
        return chosen

    def _times_s(self, rng: random.Random) -> Iterator[float]:
        now_s = 0.0
        while True:
            yield now_s
            now_s += self._gap_s(rng)

    def _gap_s(self, rng: random.Random) -> float:
        mean_s = 1 / self.rate_per_s
        if mean_s == 0.0:
            return 0.0
        match self.kind:
            case "poisson":
                return rng.expovariate(self.rate_per_s)
            case "gamma":
                return rng.gammavariate(self.burstiness, mean_s / self.burstiness)
            case "constant":
                return mean_s
