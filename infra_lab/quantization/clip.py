"""Which share of a group's range the grid should span: all of it spends steps on a few large weights, less cuts them off."""

from collections.abc import Callable, Sequence

import torch

from infra_lab.quantization.grouped import round_to_grid

CLIPS = tuple(1 - i / 20 for i in range(11))
"""Shares of a group's range that are tried."""


def best_clips(
    w: torch.Tensor,
    grid: tuple[torch.Tensor, torch.Tensor],
    bits: int,
    cost: Callable[[torch.Tensor], torch.Tensor],
    *,
    clips: Sequence[float] = CLIPS,
) -> torch.Tensor:
    """Return for each group of w [out, in] the clip at which rounding to the nearest costs least, [out, groups].

    grid: scale and zero point, each [out, groups]; a clip multiplies the scale, and the zero point stays where it is, since
    low · c / (scale · c) = low / scale. cost: of the errors w - ŵ [out, in], for each group, [out, groups].
    """
    scale, zero = grid
    group_size = w.shape[1] // scale.shape[1]
    least, best = torch.full_like(scale, float("inf")), torch.ones_like(scale)
    for clip in clips:
        costs = cost(w - round_to_grid(w, scale * clip, zero, bits, group_size).dequantize())
        best = torch.where(costs < least, clip, best)
        least = torch.minimum(costs, least)
    return best
