"""What a run will send, drawn up before the first request: when, how long, and what it shares with others."""

import random
from dataclasses import dataclass
from pathlib import Path

from infra_lab.bench.load.arrivals import Arrivals
from infra_lab.bench.load.trace_file import read_trace
from infra_lab.errors import ConfigError
from infra_lab.simulator.workload import RequestShape, lognormal_shapes


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """One request to come."""

    index: int
    arrival_s: float
    """From the start of the run; nothing the server does moves it."""
    shape: RequestShape
    """Tokens of prompt and output that are asked for."""
    prefix: int = 0
    """Which of the shared prefixes its prompt begins with."""
    shared_tokens: int = 0
    """How much of the prompt that prefix is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Prompt and output tokens: fixed, or log-normal around a median (sigma 0.7 is like conversations).

    Raises ConfigError for lengths that do not fit `max_total`.
    """

    prompt_tokens: int = 256
    output_tokens: int = 128
    sigma: float = 0.0
    """0: every request is the same."""
    max_total: int = 4096
    """The model's context: longer requests are cut to it, the output first."""

    def __post_init__(self) -> None:
        if self.prompt_tokens + self.output_tokens > self.max_total:
            raise ConfigError(
                f"{self.prompt_tokens} prompt and {self.output_tokens} output tokens are more than max_total = "
                f"{self.max_total}; shorten them, or raise max_total to the model's context"
            )

    def draw(self, num_requests: int, seed: int) -> list[RequestShape]:
        """Return a shape for each request."""
        return lognormal_shapes(
            num_requests,
            median_prompt=self.prompt_tokens,
            median_output=self.output_tokens,
            sigma=self.sigma,
            max_total=self.max_total,
            seed=seed,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedPrefix:
    """Prompts that begin alike, as with a system prompt: what a prefix cache lives on. Raises ConfigError."""

    share: float = 0.0
    """Of each prompt's tokens."""
    num_prefixes: int = 1
    """How many different beginnings there are; each request has one at random."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.share <= 1.0:
            raise ConfigError(f"the shared share of a prompt is {self.share:g}; it must be from 0 to 1")
        if self.num_prefixes < 1:
            raise ConfigError(f"the number of shared prefixes is {self.num_prefixes}; it must be at least 1")


@dataclass(frozen=True, slots=True)
class Workload:
    """The plan of a run. The same settings and seed make the same plan."""

    requests: tuple[PlannedRequest, ...]
    description: str
    seed: int = 0

    @property
    def span_s(self) -> float:
        """From the first arrival to the last."""
        return self.requests[-1].arrival_s - self.requests[0].arrival_s

    @property
    def rate_per_s(self) -> float | None:
        """Arrivals a second as drawn (a draw's rate differs a little from its process's); None if all come at once."""
        return (len(self.requests) - 1) / self.span_s if self.span_s > 0 else None


def synthetic_workload(
    arrivals: Arrivals,
    *,
    num_requests: int | None = None,
    duration_s: float | None = None,
    lengths: Lengths | None = None,
    shared_prefix: SharedPrefix | None = None,
    seed: int = 0,
) -> Workload:
    """Draw a workload; arrivals, lengths and prefixes are independent. Raises ConfigError."""
    lengths = lengths or Lengths()
    times = arrivals.times_s(num_requests=num_requests, duration_s=duration_s, seed=seed)
    shapes = lengths.draw(len(times), seed)
    bursts = f", burstiness {arrivals.burstiness:g}" if arrivals.kind == "gamma" else ""
    spread = f" ± log-normal {lengths.sigma:g}" if lengths.sigma else ""
    description = (
        f"{len(times)} requests, {arrivals.kind} at {arrivals.rate_per_s:g}/s{bursts}, "
        f"{lengths.prompt_tokens} + {lengths.output_tokens} tokens{spread}"
    )
    return _workload(times, shapes, shared_prefix or SharedPrefix(), seed, description)


def trace_workload(
    path: Path,
    *,
    speed: float = 1.0,
    num_requests: int | None = None,
    duration_s: float | None = None,
    shared_prefix: SharedPrefix | None = None,
    seed: int = 0,
) -> Workload:
    """Replay a trace file, `speed` times as fast; the first `num_requests`, those before `duration_s`. Raises ConfigError."""
    if not speed > 0:
        raise ConfigError(f"the replay speed is {speed:g}; it must be more than 0")
    entries = [entry._replace(arrival_s=entry.arrival_s / speed) for entry in read_trace(path)][:num_requests]
    entries = [entry for entry in entries if duration_s is None or entry.arrival_s < duration_s]
    if not entries:
        raise ConfigError(f"nothing of the trace {path} is left with {num_requests=} and {duration_s=}")
    times, shapes = [entry.arrival_s for entry in entries], [entry.shape for entry in entries]
    description = f"{len(entries)} requests of {path.name}" + (f", {speed:g}× as fast" if speed != 1.0 else "")
    return _workload(times, shapes, shared_prefix or SharedPrefix(), seed, description)


def _workload(
    times: list[float], shapes: list[RequestShape], shared: SharedPrefix, seed: int, description: str
) -> Workload:
    rng = random.Random(f"prefixes {seed}")
    requests = tuple(
        PlannedRequest(
            index, arrival_s, shape, rng.randrange(shared.num_prefixes), round(shared.share * shape.prompt_tokens)
        )
        for index, (arrival_s, shape) in enumerate(zip(times, shapes, strict=True))
    )
    if shared.share:
        beginnings = "one beginning" if shared.num_prefixes == 1 else f"{shared.num_prefixes} beginnings"
        description += f", {shared.share:.0%} of each prompt from {beginnings}"
    return Workload(requests, description, seed)
