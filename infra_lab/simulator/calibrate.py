"""From an engine's recorded steps to a cost model: non-negative least squares."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from infra_lab.engine.recorder import StepRecord
from infra_lab.errors import ConfigError
from infra_lab.simulator.cost import LinearStepCost


@dataclass(frozen=True, slots=True)
class Calibration:
    """A fitted cost model, and how well it tells the steps that it was fitted to."""

    cost: LinearStepCost
    num_steps: int
    median_error: float
    """Of |predicted - measured| / measured over the steps."""
    total_error: float
    """(predicted - measured) / measured, of all steps' time together."""


def calibrate(steps: Sequence[StepRecord], *, skip: int = 1) -> Calibration:
    """Fit `LinearStepCost` to recorded steps: the least sum of squared relative errors, with no coefficient below 0.

    Relative, so that a prompt's step of a second does not drown the thousand decodes of a millisecond. The first `skip` steps
    are left out: they pay for what happens once (memory, compilation). A coefficient whose column never varies is not told from
    the fixed part: record steps of several sizes. Raises ConfigError for fewer than three steps that took time.
    """
    chosen = [step for step in steps[skip:] if step.duration_s > 0]
    if len(chosen) < 3:
        raise ConfigError(f"{len(chosen)} steps to calibrate with; three coefficients need at least 3, better hundreds")
    measured = np.array([step.duration_s for step in chosen])
    features = np.array(
        [(1, step.num_tokens, sum(c.start + c.num_tokens for c in step.chunks)) for step in chosen], dtype=np.float64
    )
    weights = _non_negative_least_squares(features / measured[:, None])
    predicted = features @ weights
    return Calibration(
        LinearStepCost(fixed_s=float(weights[0]), per_token_s=float(weights[1]), per_context_token_s=float(weights[2])),
        num_steps=len(chosen),
        median_error=float(np.median(np.abs(predicted - measured) / measured)),
        total_error=float(predicted.sum() / measured.sum() - 1),
    )


def _non_negative_least_squares(A: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return x ≥ 0 with the least |Ax - 1|². With three columns, all sets of free ones can be tried.

    The best x is the unconstrained solution over its positive coefficients: of the sets whose solution is positive, the best.
    """
    scale = np.abs(A).max(axis=0)
    scale[scale == 0] = 1.0
    B, ones = A / scale, np.ones(len(A))
    best: npt.NDArray[np.float64] = np.zeros(A.shape[1])
    least = float(len(A))
    for size in range(1, A.shape[1] + 1):
        for free in combinations(range(A.shape[1]), size):
            x = np.zeros(A.shape[1])
            x[list(free)] = np.linalg.lstsq(B[:, free], ones, rcond=None)[0]
            loss = float(np.square(B @ x - 1).sum())
            if x.min() >= 0 and loss < least:
                best, least = x, loss
    solution: npt.NDArray[np.float64] = best / scale
    return solution
