"""How long a step takes, as a formula: what a simulated executor lets the clock advance by."""

import math
from dataclasses import dataclass
from typing import Protocol

from infra_lab.errors import ConfigError
from infra_lab.scheduler.plan import StepPlan


class StepCost(Protocol):
    """Predicts the duration of a step from its plan alone."""

    def step_s(self, plan: StepPlan) -> float:
        """Return seconds, never negative."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearStepCost:
    """seconds = fixed + per_token · tokens computed + per_context_token · keys read.

    The three terms are what a step of a decoder is made of: launching it and reading the weights once, arithmetic on every
    token, and reading each sequence's KV cache. All zero: a step takes no time, which leaves the scheduler's own cost.
    Raises ConfigError for a negative one.
    """

    fixed_s: float = 0.0
    per_token_s: float = 0.0
    per_context_token_s: float = 0.0

    def __post_init__(self) -> None:
        for name in ("fixed_s", "per_token_s", "per_context_token_s"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be 0 or a positive number of seconds")

    def step_s(self, plan: StepPlan) -> float:
        """Return the seconds that the plan takes."""
        num_tokens = context = 0
        for _, start, num in plan.chunks:
            num_tokens += num
            context += start + num
        return self.fixed_s + self.per_token_s * num_tokens + self.per_context_token_s * context
