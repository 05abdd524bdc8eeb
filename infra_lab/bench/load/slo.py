"""Goodput: requests a second that were served well enough (DistServe, 2024)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from infra_lab.bench.load.record import RequestRecord
from infra_lab.errors import ConfigError

Latency = Literal["ttft", "tpot", "itl", "e2e"]


class Slo(NamedTuple):
    """A limit that each request has to keep by itself. "itl" is a request's longest gap."""

    latency: Latency
    limit_s: float

    def is_met(self, record: RequestRecord) -> bool:
        """Whether a request kept it. One token has no TPOT and no gap, which keeps any limit."""
        match self.latency:
            case "ttft":
                value = record.ttft_s
            case "e2e":
                value = record.e2e_s
            case "tpot":
                value = record.tpot_s or 0.0
            case "itl":
                value = max(record.itl_s, default=0.0)
        return value is not None and value <= self.limit_s


@dataclass(frozen=True, slots=True)
class Goodput:
    """How much of the load was served within all limits."""

    slos: tuple[Slo, ...]
    num_good: int
    per_s: float
    share: float
    """Of all that were sent: a request that failed is not good."""


def parse_slo(text: str) -> Slo:
    """Read "ttft:500" (milliseconds). Raises ConfigError."""
    name, _, number = text.partition(":")
    try:
        limit_ms = float(number)
    except ValueError:
        limit_ms = 0.0
    for latency in get_args(Latency):
        if name.strip() == latency and limit_ms > 0:
            return Slo(latency, limit_ms / 1000)
    raise ConfigError(f"the SLO is {text!r}; expected one of {', '.join(get_args(Latency))} and milliseconds: ttft:500")


def goodput(records: Sequence[RequestRecord], slos: Sequence[Slo], duration_s: float) -> Goodput:
    """Count the requests that ended well and kept every limit, over `duration_s`."""
    num_good = sum(record.is_ok and all(slo.is_met(record) for slo in slos) for record in records)
    return Goodput(
        tuple(slos),
        num_good,
        num_good / duration_s if duration_s > 0 else 0.0,
        num_good / len(records) if records else 0.0,
    )
