"""SmoothQuant (Xiao et al. 2022): move the difficulty from activations, which have outliers, to weights, which have none.

With activations in 8 bits a token's step is its largest value / 127. A channel a hundred times as large as the others leaves
them one or two steps. But the channels are always the same ones, so that they can be divided by a constant, and the weights'
columns multiplied by it:

    y = (x · diag(s)⁻¹) · (diag(s) · Wᵀ),   s_j = max|x_j|^α / max|w_j|^(1 - α)

    α = 0: all weights' columns equally large     α = 1: all activations' channels equally large     ½: shared between them

The division is folded into the norm before (see `folding`).
"""

import torch

from infra_lab.errors import ConfigError

OUTLIER_RATIO = 10.0


def outlier_channels(largest: torch.Tensor, ratio: float = OUTLIER_RATIO) -> torch.Tensor:
    """Return the channels whose largest magnitude exceeds `ratio` times the median channel's, largest first: [n] int64.

    largest: [C], as `AbsMax.channels` has it.
    """
    found = (largest > ratio * largest.median()).nonzero().squeeze(1)
    return found[largest[found].argsort(descending=True)]


def smoothing_factors(
    activations: torch.Tensor, weights: torch.Tensor, alpha: float = 0.5, *, name: str = "the weight"
) -> torch.Tensor:
    """Return s [in] for the largest magnitude of each input channel and of each column of the weight, both [in].

    Channels that are zero in either get 1: there is nothing to balance. Raises ConfigError for an alpha outside 0 … 1.
    """
    if not 0 <= alpha <= 1:
        raise ConfigError(f"{name}: smoothing with alpha {alpha}; it must be between 0 and 1")
    is_empty = (activations <= 0) | (weights <= 0)
    factors = activations.clamp_min(1e-30).pow(alpha) / weights.clamp_min(1e-30).pow(1 - alpha)
    return torch.where(is_empty, 1.0, factors)
