"""NF4: sixteen levels at the quantiles of a normal distribution (QLoRA, Dettmers et al. 2023).

    -1.00        -0.70   -0.53  -0.39 -0.28 -0.18 -0.09 0 0.08 0.16 0.25 0.34  0.44   0.56    0.72         1.00
      │            │       │      │    │   │   │  │  │  │  │   │    │      │       │            │

Trained weights are nearly normal; with levels at its quantiles each code is used about equally often, so that four bits carry
as much as they can. Zero must be one of the levels, so there are eight above it and seven below: the quantiles of

    positive   nine probabilities, equally spaced from 1/2 to p      negative   eight, from 1/2 to p, with the sign turned
    p = 1 - (1/30 + 1/32) / 2                                        half a level's share away from 1, averaged over both halves

The zero of both halves is one level, and all are divided by the largest. A block of 64 inputs shares a float32 scale, its
largest magnitude: 4.5 bits a weight (32 where 64 do not divide; QLoRA stores the scales in 8 bits again, for 4.127).
"""

from functools import cache
from statistics import NormalDist

import torch

BLOCK_SIZE = 64


@cache
def nf4_levels() -> torch.Tensor:
    """Return the sixteen levels in ascending order, float32 [16]."""
    top = 1 - (1 / 30 + 1 / 32) / 2
    quantile = NormalDist().inv_cdf
    positive = [quantile(0.5 + (top - 0.5) * i / 8) for i in range(1, 9)]
    negative = [-quantile(0.5 + (top - 0.5) * i / 7) for i in range(7, 0, -1)]
    return torch.tensor([*negative, 0.0, *positive], dtype=torch.float64).div(max(positive)).float()


def quantize_nf4(w: torch.Tensor, block_size: int = BLOCK_SIZE) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (codes, scale) of w [out, in]: uint8 [out, in], 0 … 15, and float32 [out, in / block_size], the largest |w|."""
    blocks = w.float().reshape(w.shape[0], -1, block_size)
    scale = blocks.abs().amax(dim=2)
    normed = blocks / torch.where(scale > 0, scale, 1.0).unsqueeze(2)
    levels = nf4_levels().to(w.device)
    codes = torch.bucketize(normed, (levels[1:] + levels[:-1]) / 2)  # the level on the nearer side of each middle
    return codes.to(torch.uint8).view(w.shape), scale
