"""From an engine's steps to a cost model: non-negative least squares on the sums of each step."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from infra_lab.engine.recorder import ChunkRecord, StepRecord
from infra_lab.errors import ConfigError
from infra_lab.simulator.cost import LinearStepCost, StepShape

_ROUNDS = 5
_Values = npt.NDArray[np.float64]


class TimedStep(NamedTuple):
    """A step that a real engine took."""

    shape: StepShape
    seconds: float


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
    """Fit `LinearStepCost` to an engine's recorded steps; the first `skip`, which pay for what happens once, are left out.

    A record ends before it is written down, so what lies between two steps is not in the fit; `timed_steps` has it.
    Raises ConfigError as `fit_cost` does.
    """
    return fit_cost([TimedStep(shape_of_chunks(step.chunks), step.duration_s) for step in steps[skip:]])


def fit_cost(steps: Sequence[TimedStep]) -> Calibration:
    """Fit `LinearStepCost` to timed steps: the least sum of squared relative errors, with no coefficient below 0.

    Relative, so that a prompt's step of a second does not drown the thousand decodes of a millisecond; and relative to the
    prediction (iteratively reweighted), so that the fit goes through the mean: errors relative to the measured time pull it
    towards the fast steps, and a run is as slow as its steps are on average. A coefficient whose sum never varies is not told
    from the fixed part: time steps of several sizes. Raises ConfigError for fewer than six steps that took time.
    """
    chosen = [step for step in steps if step.seconds > 0]
    if len(chosen) < 6:
        raise ConfigError(f"{len(chosen)} steps to calibrate with; five coefficients need at least 6, better hundreds")
    measured = np.array([step.seconds for step in chosen])
    shapes = [step.shape for step in chosen]
    features = np.array([(1, s.num_tokens, s.context, s.num_requests, s.pairs) for s in shapes], dtype=np.float64)
    predicted = measured
    for _ in range(_ROUNDS):
        weights = _non_negative_least_squares(features / predicted[:, None], measured / predicted)
        predicted = np.maximum(features @ weights, measured.min())
    fixed, token, context, request, pair = weights.tolist()
    return Calibration(
        LinearStepCost(
            fixed_s=fixed, per_token_s=token, per_context_token_s=context, per_request_s=request, per_pair_s=pair
        ),
        num_steps=len(chosen),
        median_error=float(np.median(np.abs(predicted - measured) / measured)),
        total_error=float(predicted.sum() / measured.sum() - 1),
    )


def shape_of_chunks(chunks: Sequence[ChunkRecord]) -> StepShape:
    """Sum up a recorded step."""
    return StepShape(
        len(chunks),
        sum(chunk.num_tokens for chunk in chunks),
        sum(chunk.token_id is not None for chunk in chunks),
        sum(chunk.start + chunk.num_tokens for chunk in chunks),
        sum(chunk.num_tokens * (2 * chunk.start + chunk.num_tokens + 1) // 2 for chunk in chunks),
    )


def _non_negative_least_squares(A: _Values, b: _Values) -> _Values:
    """Return x ≥ 0 with the least |Ax - b|². With five columns, all sets of free ones can be tried.

    The best x is the unconstrained solution over its positive coefficients: of the sets whose solution is positive, the best.
    """
    scale = np.abs(A).max(axis=0)
    scale[scale == 0] = 1.0
    Q, R = np.linalg.qr(A / scale)  # |Ax - b|² is |Rx - Qᵀb|² and a constant: five rows instead of thousands
    target = Q.T @ b
    best: _Values = np.zeros(A.shape[1])
    least = float(target @ target)
    rounding = 1e-12 * least  # of two columns that say the same, the first counts
    for size in range(1, A.shape[1] + 1):
        for free in combinations(range(A.shape[1]), size):
            x = np.zeros(A.shape[1])
            x[list(free)] = np.linalg.lstsq(R[:, free], target, rcond=None)[0]
            loss = float(np.square(R @ x - target).sum())
            if x.min() >= 0 and loss < least - rounding:
                best, least = x, loss
    solution: _Values = best / scale
    return solution
