"""The seam between who proposes tokens and who checks them."""

from dataclasses import dataclass
from typing import Protocol

import torch

from infra_lab.scheduler.plan import StepPlan


@dataclass(slots=True)
class Proposal:
    """Tokens that may follow one request's tokens."""

    token_ids: list[int]
    probs: torch.Tensor | None = None
    """[proposals, V] float64: what each was drawn from, all filters and the temperature applied. None: there was no draw, the
    proposer was sure of each."""


class Proposer(Protocol):
    """Proposes tokens for the decodes of a step, before the model computes it."""

    def propose(self, plan: StepPlan) -> dict[int, Proposal]:
        """Return proposals by position in the plan: only for those in `plan.drafts`, at least one token and at most as many.

        Called once for every step, also for those without room for drafts, after the step's copies were applied. It may
        write to KV slots of positions from a request's `start` on, which the step computes anew; it changes no request.
        """
        ...

    def close(self) -> None:
        """Give back what it holds; a second call does nothing."""
        ...
