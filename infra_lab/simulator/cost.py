"""How long a step takes, as a formula: what a simulated executor lets the clock advance by."""

from dataclasses import dataclass
from typing import Protocol

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
    """

    fixed_s: float = 0.0
    per_token_s: float = 0.0
    per_context_token_s: float = 0.0

    def step_s(self, plan: StepPlan) -> float:
        """Return the seconds that the plan takes."""
        context = sum(chunk.start + chunk.num_tokens for chunk in plan.chunks)
        return self.fixed_s + self.per_token_s * plan.num_tokens + self.per_context_token_s * context
