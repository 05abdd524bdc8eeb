"""What a simulation has shown: distributions of latencies, rates, goodput, and how hard memory was used."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from infra_lab.errors import ConfigError

_Values = npt.NDArray[np.float64]


class Spread(NamedTuple):
    """A distribution in a few numbers; percentiles with linear interpolation."""

    mean: float
    p50: float
    p90: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: _Values) -> Self | None:
        """Return None for no values: nothing has no percentile."""
        if not values.size:
            return None
        p50, p90, p99 = np.percentile(values, (50, 90, 99)).tolist()
        return cls(float(values.mean()), p50, p90, p99, float(values.max()))


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceLevel:
    """Limits that each request has to keep by itself; None: no such limit. Raises ConfigError if one is not positive."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    """A request of one token has none, and keeps it."""
    e2e_s: float | None = None

    def __post_init__(self) -> None:
        for name in ("ttft_s", "tpot_s", "e2e_s"):
            limit = getattr(self, name)
            if limit is not None and not 0 < limit < math.inf:
                raise ConfigError(f"{name} is {limit}; it must be a positive number, or None for no limit")

    def is_kept(
        self, ttft_s: _Values | float, tpot_s: _Values | float, e2e_s: _Values | float
    ) -> npt.NDArray[np.bool_]:
        """Return for each request whether it keeps all limits, in the shape of its latencies; `tpot_s` of one token is 0."""
        kept = np.ones(np.shape(ttft_s), dtype=bool)
        for limit, values in ((self.ttft_s, ttft_s), (self.tpot_s, tpot_s), (self.e2e_s, e2e_s)):
            if limit is not None:
                kept = kept & (values <= limit)
        return kept


@dataclass(slots=True)
class ServedRequest:
    """One request that was served to its end. Times in seconds on the simulation's clock."""

    index: int
    """In the workload."""
    arrival_s: float
    prompt_tokens: int
    cached_tokens: int
    """Of the prompt, found in the prefix cache when it first came in."""
    num_preemptions: int
    output_tokens: int
    first_token_s: float
    last_token_s: float
    token_times_s: list[float]
    """Empty where the model does not go into tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationReport:
    """All figures of a run. Latencies are those of requests that were served; rates count over `duration_s`."""

    num_requests: int
    num_served: int
    rejected: dict[str, int]
    """By why the scheduler refused them."""
    num_abandoned: int
    """Later turns of a session of which one was refused."""
    duration_s: float
    """From 0 to the last token."""
    num_steps: int
    request_steps: int
    """Over all steps, the requests in them."""
    busy_share: float
    """Of the duration, and of the replicas, in which something was computed."""
    ttft_s: Spread | None
    tpot_s: Spread | None
    itl_s: Spread | None
    """Gaps between tokens of one request; None where the model does not go into tokens."""
    e2e_s: Spread | None
    requests_per_s: float
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    output_tokens_per_s: float
    good_share: float | None
    """Of all requests, the refused ones too: how many were served within the service level."""
    goodput_per_s: float | None
    kv_use_mean: float | None
    """Blocks held over all blocks, while something ran; weighted by time."""
    kv_use_max: float | None
    num_preemptions: int
    wall_s: float = field(compare=False)
    """What the simulation itself took."""
    served: tuple[ServedRequest, ...] = field(repr=False)

    @property
    def request_steps_per_s(self) -> float:
        """The simulator's own speed."""
        return self.request_steps / self.wall_s if self.wall_s > 0 else math.inf

    def to_json(self) -> dict[str, Any]:
        """All figures without the single requests."""
        content = {name: value for name, value in asdict(self).items() if name != "served"}
        for name in ("ttft_s", "tpot_s", "itl_s", "e2e_s"):
            content[name] = None if getattr(self, name) is None else getattr(self, name)._asdict()
        return content

    def write_json(self, path: Path) -> None:
        """Write the figures. Raises ConfigError if the file cannot be written."""
        try:
            path.write_text(json.dumps(self.to_json(), indent=2, allow_nan=False) + "\n", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"cannot write the report {path}: {error}") from error


class Usage(NamedTuple):
    """What a run counted as it went."""

    num_steps: int
    request_steps: int
    busy_share: float
    kv_use_mean: float | None
    kv_use_max: float | None
    wall_s: float


def summarize(
    served: Sequence[ServedRequest],
    usage: Usage,
    *,
    num_requests: int,
    rejected: dict[str, int],
    slo: ServiceLevel | None,
) -> SimulationReport:
    """Sum up the requests of a run that is over."""
    arrival = np.array([request.arrival_s for request in served])
    first = np.array([request.first_token_s for request in served])
    last = np.array([request.last_token_s for request in served])
    tokens = np.array([request.output_tokens for request in served], dtype=np.int64)
    tpot = (last - first) / np.maximum(tokens - 1, 1)
    gaps = [np.diff(request.token_times_s) for request in served if len(request.token_times_s) > 1]
    duration_s = float(last.max()) if served else 0.0
    per_s = 1 / duration_s if duration_s > 0 else 0.0
    level = slo or ServiceLevel()
    num_good = int(level.is_kept(first - arrival, np.where(tokens > 1, tpot, 0.0), last - arrival).sum())
    return SimulationReport(
        num_requests=num_requests,
        num_served=len(served),
        rejected=rejected,
        num_abandoned=num_requests - len(served) - sum(rejected.values()),
        duration_s=duration_s,
        num_steps=usage.num_steps,
        request_steps=usage.request_steps,
        busy_share=usage.busy_share,
        ttft_s=Spread.of(first - arrival),
        tpot_s=Spread.of(tpot[tokens > 1]),
        itl_s=Spread.of(np.concatenate(gaps)) if gaps else None,
        e2e_s=Spread.of(last - arrival),
        requests_per_s=len(served) * per_s,
        prompt_tokens=sum(request.prompt_tokens for request in served),
        cached_tokens=sum(request.cached_tokens for request in served),
        output_tokens=int(tokens.sum()),
        output_tokens_per_s=int(tokens.sum()) * per_s,
        good_share=num_good / num_requests if slo else None,
        goodput_per_s=num_good * per_s if slo else None,
        kv_use_mean=usage.kv_use_mean,
        kv_use_max=usage.kv_use_max,
        num_preemptions=sum(request.num_preemptions for request in served),
        wall_s=usage.wall_s,
        served=tuple(served),
    )
