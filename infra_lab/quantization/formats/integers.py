"""Integers with a scale: x ≈ scale · (q - zero), and which elements share the scale.

    granularity   one scale (and zero point) for      x [rows, columns]    scale
    tensor        everything                          a weight             [1, 1]
    channel       a row of a weight, an output        [out, in]            [out, 1]
    token         a row of activations                [T, H]               [T, 1]
    group         `group_size` neighbours of a row    either               [rows, groups], see `grouped`

    symmetric     zero = 0, q in -limit … limit, limit = 2^(bits-1) - 1; scale = max|x| / limit
    asymmetric    q in 0 … 2^bits - 1, scale = (max - min) / (2^bits - 1), zero = -min / scale rounded, so that 0 is exact

A channel and a token are the same computation: what differs is whether rows are known beforehand (weights) or only when they
come (activations, whose scales are taken anew at every step). INT8 leaves one of 256 codes unused to be symmetric, 0.4 % of the
range; INT3 leaves one of eight, 14 %: few bits want zero points. Follows Jacob et al. 2017.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from infra_lab.errors import ConfigError

Granularity = Literal["tensor", "channel", "token", "group"]


@dataclass(frozen=True, slots=True)
class Integers:
    """Quantized x: x ≈ scale · (q - zero)."""

    q: torch.Tensor
    """[rows, columns] int8 if symmetric, else uint8."""
    scale: torch.Tensor
    """[1 or rows, 1 or groups] float32."""
    zero: torch.Tensor
    """The same shape, float32 whole numbers; symmetric: zeros."""

    def dequantize(self) -> torch.Tensor:
        """Return [rows, columns] float32."""
        rows, groups = self.q.shape[0], self.scale.shape[1]
        q = self.q.view(rows, groups, -1).float()
        return ((q - self.zero.unsqueeze(2)) * self.scale.unsqueeze(2)).view(self.q.shape)


def quantize_integers(
    x: torch.Tensor, bits: int, granularity: Granularity, *, symmetric: bool = True, group_size: int | None = None
) -> Integers:
    """Round x [rows, columns] to integers of 2 to 8 bits, half to even.

    `group_size` goes with "group" and divides the columns. Raises ConfigError for other bits, granularities and group sizes,
    and for NaN or infinite values.
    """
    _check(x, bits, granularity, group_size)
    rows, columns = x.shape
    grouped = x.float().view(rows, -1, group_size or columns)
    axes: tuple[int, ...] = (0, 1, 2) if granularity == "tensor" else (2,)
    low, high = grouped.amin(dim=axes, keepdim=True), grouped.amax(dim=axes, keepdim=True)
    if symmetric:
        limit = 2 ** (bits - 1) - 1
        scale = _positive(torch.maximum(-low, high) / limit)
        q = (grouped / scale).round_().clamp_(-limit, limit).to(torch.int8)
        zero = torch.zeros_like(scale)
    else:
        low, high = low.clamp_max(0.0), high.clamp_min(0.0)  # the range must hold 0 for it to be exact
        scale = _positive((high - low) / (2**bits - 1))
        zero = (-low / scale).round()
        q = (grouped / scale).round_().add_(zero).clamp_(0, 2**bits - 1).to(torch.uint8)
    return Integers(q.view(rows, columns), scale.squeeze(2), zero.squeeze(2))


def _positive(scale: torch.Tensor) -> torch.Tensor:
    return torch.where(scale > 0, scale, 1.0)  # all zeros: any scale will do


def _check(x: torch.Tensor, bits: int, granularity: str, group_size: int | None) -> None:
    if not 2 <= bits <= 8:
        raise ConfigError(f"{bits} bits; integers take 2 to 8")
    if granularity not in get_args(Granularity):
        raise ConfigError(f"unknown granularity {granularity!r}; known: {', '.join(get_args(Granularity))}")
    if (granularity == "group") != (group_size is not None):
        raise ConfigError(
            f"granularity is {granularity!r} and group_size {group_size}; groups, and only they, have a size"
        )
    if group_size is not None and (group_size < 1 or x.shape[1] % group_size):
        raise ConfigError(f"groups of {group_size} do not divide {x.shape[1]} columns")
    if not bool(torch.isfinite(x).all()):
        raise ConfigError("x has NaN or infinite values, which no integer stands for")
