"""AWQ (Lin et al. 2023): protect the few channels that matter by scaling them up before rounding.

A weight's rounding error is about half a step of its group, whatever its size; multiplied by s before, and its input divided by
s, the same half step counts 1/s. Which channels matter is seen in the activations, not in the weights:

    y = Q(W · diag(s)) · (diag(s)⁻¹ · x),   s = mean|x|^α / √(max · min),   α in [0, 1] by search

Where channels get too much, a group's range grows and with it everybody's step: the search finds the balance. The division of
x costs nothing: it is folded into what produces x (see `folding`). Then each group's range is clipped where that pays.

Losses are of the layer's own output, mean |(W - Ŵ) · x|², by the inputs' Hessian (see `observers`); the authors' code compares
the outputs of whole attention and MLP blocks in some places.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from infra_lab.quantization.clip import CLIPS, best_clips
from infra_lab.quantization.grouped import GroupedInt, grid_of, round_to_grid

ALPHAS = tuple(i / 20 for i in range(20))


class ScaleSearch(NamedTuple):
    """What a search found."""

    factors: torch.Tensor
    """s, [in] float32: what the weight's columns are multiplied by."""
    alpha: float
    losses: list[float]
    """For each alpha tried; the first is plain rounding, if that is alpha 0."""


def output_error(difference: torch.Tensor, hessian: torch.Tensor) -> float:
    """Return mean |D · x|² = ½ · tr(D · H · Dᵀ) for a change D [out, in] of the weights."""
    return 0.5 * float(((difference @ hessian) * difference).sum())


def search_scale(
    w: torch.Tensor,
    hessian: torch.Tensor,
    magnitudes: torch.Tensor,
    round_trip: Callable[[torch.Tensor], torch.Tensor],
    *,
    alphas: Sequence[float] = ALPHAS,
) -> ScaleSearch:
    """Find the exponent α with the least error of w [out, in]'s output.

    hessian: [in, in]; magnitudes: mean |x| of each channel, [in]; channels that must share a factor have equal ones.
    round_trip: quantize and dequantize a weight.
    """
    tried = []
    for alpha in alphas:
        factors = scale_factors(magnitudes, alpha)
        rounded = round_trip(w * factors) / factors
        tried.append((output_error(w - rounded, hessian), alpha, factors))
    _, alpha, factors = min(tried, key=lambda found: found[0])
    return ScaleSearch(factors, alpha, [loss for loss, _, _ in tried])


def scale_factors(magnitudes: torch.Tensor, alpha: float) -> torch.Tensor:
    """Return s [in]: magnitudes^α, centred on 1; a channel that never had an input counts as the quietest of the others."""
    lowest = magnitudes[magnitudes > 0].min() if bool((magnitudes > 0).any()) else torch.ones(())
    powers = magnitudes.clamp_min(float(lowest)).pow(alpha)
    return powers / (powers.max() * powers.min()).sqrt()


def search_clip(
    w: torch.Tensor, hessian: torch.Tensor, bits: int, group_size: int, *, clips: Sequence[float] = CLIPS
) -> torch.Tensor:
    """Return for each group the share of its range with the least output error, [out, groups] of values in `clips`.

    A group is judged by its own part of H, [group_size, group_size]: errors of other groups are taken as unrelated.
    """
    num_out, num_in = w.shape
    groups = torch.arange(num_in // group_size, device=w.device)
    blocks = hessian.view(len(groups), group_size, len(groups), group_size)[groups, :, groups]  # [groups, size, size]

    def cost(error: torch.Tensor) -> torch.Tensor:
        difference = error.view(num_out, len(groups), group_size).transpose(0, 1)  # [groups, out, size]
        return ((difference @ blocks) * difference).sum(dim=2).t()

    return best_clips(w, grid_of(w, bits, group_size), bits, cost, clips=clips)


def clipped_rtn(w: torch.Tensor, clip: torch.Tensor, bits: int, group_size: int, name: str) -> GroupedInt:
    """Round w [out, in] to grids of `clip` [out, groups] times their groups' range; 1 is plain rounding."""
    scale, zero = grid_of(w, bits, group_size, name=name)
    return round_to_grid(w, scale * clip, zero, bits, group_size)
