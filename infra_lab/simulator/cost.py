"""How long a step takes, as a formula: what a simulated executor lets the clock advance by."""

import math
from dataclasses import dataclass, fields
from typing import NamedTuple, Protocol, Self, runtime_checkable

from infra_lab.errors import ConfigError
from infra_lab.scheduler.plan import StepPlan


class StepShape(NamedTuple):
    """A step in five sums over its chunks: all that the cost models here look at."""

    num_requests: int
    num_tokens: int
    """Tokens to compute."""
    num_sampled: int
    """Chunks that reach their request's last token, so that the next one is sampled."""
    context: int
    """Keys read: start + tokens of each chunk."""
    pairs: int
    """Pairs of a query and a key that it attends to (causal: token i has i + 1)."""

    @classmethod
    def of(cls, plan: StepPlan) -> Self:
        """Sum up a plan."""
        num_tokens = num_sampled = context = pairs = 0
        for request, start, num in plan.chunks:
            end = start + num
            num_tokens += num
            num_sampled += end == len(request.token_ids)
            context += end
            pairs += end if num == 1 else num * start + num * (num + 1) // 2
        return cls(len(plan.chunks), num_tokens, num_sampled, context, pairs)

    @classmethod
    def of_decodes(cls, num_requests: int, context: int) -> Self:
        """A step in which each request computes its last token: each key that is read makes one pair."""
        return cls(num_requests, num_requests, num_requests, context, context)


class StepCost(Protocol):
    """Predicts the duration of a step from its plan alone."""

    def step_s(self, plan: StepPlan) -> float:
        """Return seconds, never negative."""
        ...


@runtime_checkable
class ShapeCost(StepCost, Protocol):
    """One that needs no more than a step's sums: steps of equal shape take equally long, so a replay may skip the plans."""

    def shape_s(self, shape: StepShape) -> float:
        """Return what `step_s` returns for any plan of this shape."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearStepCost:
    """seconds = fixed + a rate for each of a step's sums: requests, tokens computed, keys read, pairs of query and key.

    The terms are what a step of a decoder is made of: launching it and reading the weights once; per request, sampling and
    handing out a token; per token, the matrices' arithmetic; per key, reading the KV cache; per pair, attention's arithmetic.
    All zero: a step takes no time, which leaves the scheduler's own cost. Raises ConfigError for a negative one.
    """

    fixed_s: float = 0.0
    per_token_s: float = 0.0
    per_context_token_s: float = 0.0
    per_request_s: float = 0.0
    per_pair_s: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not 0 <= value < math.inf:
                raise ConfigError(f"{field.name} is {value}; it must be 0 or a positive number of seconds")

    def step_s(self, plan: StepPlan) -> float:
        """Return the seconds that the plan takes."""
        return self.shape_s(StepShape.of(plan))

    def shape_s(self, shape: StepShape) -> float:
        """Return the seconds that a step of this shape takes."""
        num_requests, num_tokens, _, context, pairs = shape
        return (
            self.fixed_s
            + self.per_request_s * num_requests
            + self.per_token_s * num_tokens
            + self.per_context_token_s * context
            + self.per_pair_s * pairs
        )
