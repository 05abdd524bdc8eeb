"""Integer weights in groups: the one form that every weight-only integer method ends in, and rounding to the nearest (RTN).

    a row of W, 2 groups of 4 inputs, 2 bits            W[o, i] ≈ scale[o, g] · (q[o, i] - zero[o, g]),   g = i // group_size

    W      -0.3  0.0  0.1  0.6 │ 0.5  0.5  0.5  0.5     a group's smallest value is q = 0, its largest 2^bits - 1
    q         0    1    1    3 │   0    0    0    0     all equal: no range to divide, and stored exactly
    scale           0.3        │         1.0
    zero            1.0        │        -0.5            in units of q, and not rounded: -low / scale

Smaller groups follow the weights more closely and store more scales: 4 bits in groups of 32 are 4 + 2·16/32 = 5 bits a weight.
"""

from dataclasses import dataclass

import torch

from infra_lab.errors import ConfigError

KERNEL_GROUP_SIZES = (32, 64, 128, 256)
"""What torch's CPU kernel for 4-bit weights takes, and what the engine's layers therefore come in."""


@dataclass(frozen=True, slots=True)
class GroupedInt:
    """Integer weights with a scale and a zero point a group of inputs: W[o, i] ≈ scale[o, g] · (q[o, i] - zero[o, g])."""

    q: torch.Tensor
    """[out, in] uint8, 0 … 2^bits - 1."""
    scale: torch.Tensor
    """[out, groups] float32, > 0."""
    zero: torch.Tensor
    """[out, groups] float32, in units of q; symmetric: 2^(bits - 1) everywhere."""
    bits: int
    """2 … 8."""
    group_size: int
    """in // groups; the whole row: in."""

    @property
    def shape(self) -> torch.Size:
        """[out, in]."""
        return self.q.shape

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and zero points as they lie here, a byte a code."""
        return self.q.nbytes + self.scale.nbytes + self.zero.nbytes

    def dequantize(self, dtype: torch.dtype = torch.float32, rows: slice = slice(None)) -> torch.Tensor:
        """Return the weights, or rows of them, [out, in]; computed in float32 (float64 if that is asked for)."""
        exact = torch.float64 if dtype is torch.float64 else torch.float32
        scale, zero = self.scale[rows].to(exact).unsqueeze(2), self.zero[rows].to(exact).unsqueeze(2)
        q = self.q[rows]
        grouped = q.view(*scale.shape[:2], self.group_size).to(exact)
        return grouped.sub_(zero).mul_(scale).view(q.shape).to(dtype)


def effective_group_size(width: int, wanted: int) -> int:
    """Return the group size for a matrix of `width` inputs where groups of `wanted` are asked for: the largest that fits.

    576 inputs, groups of 128: 576 = 4.5 · 128, so they get 64 (96 would divide, but the kernel takes only
    KERNEL_GROUP_SIZES). Raises ConfigError if there is none.
    """
    fitting = [size for size in KERNEL_GROUP_SIZES if size <= wanted and width % size == 0]
    if not fitting:
        raise ConfigError(
            f"no group size up to {wanted} divides {width} inputs; the kernels take groups of "
            f"{', '.join(map(str, KERNEL_GROUP_SIZES))}; choose a scheme without groups, such as int8 or fp8"
        )
    return fitting[-1]


def grid_of(
    w: torch.Tensor, bits: int, group_size: int, *, symmetric: bool = False, name: str = "the weight"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (scale, zero), each [out, groups] float32, of the min-max grid of w [out, in].

    The grid spans a group's smallest to its largest value; symmetric: -max|w| to max|w|, the lowest of the codes unused.
    Raises ConfigError, naming the matrix, for bits outside 2 … 8, a group size that does not divide, NaN and infinities.
    """
    check_weight(w, bits, group_size, name)
    grouped = w.float().view(w.shape[0], -1, group_size)
    low, high = grouped.amin(dim=2), grouped.amax(dim=2)
    is_constant = low == high
    if symmetric:
        largest = torch.maximum(-low, high)
        scale = torch.where(is_constant, largest, largest / (2 ** (bits - 1) - 1))  # a constant is one step, exactly
        scale = torch.where(scale > 0, scale, 1.0)  # also where the division underflows
        return scale, torch.full_like(scale, 2.0 ** (bits - 1))
    scale = high / (2**bits - 1) - low / (2**bits - 1)  # the difference itself may overflow
    scale = torch.where(is_constant | (scale <= 0), 1.0, scale)
    return scale, -low / scale


def round_to_grid(w: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, bits: int, group_size: int) -> GroupedInt:
    """Take the points nearest to w [out, in] of the grid of scale and zero [out, groups]; values off the grid get its ends."""
    grouped = w.float().view(w.shape[0], -1, group_size)
    codes = (grouped / scale.unsqueeze(2)).add_(zero.unsqueeze(2)).round_().clamp_(0, 2**bits - 1)
    return GroupedInt(codes.to(torch.uint8).view(w.shape), scale, zero, bits, group_size)


def rtn(
    w: torch.Tensor, bits: int, group_size: int, *, symmetric: bool = False, name: str = "the weight"
) -> GroupedInt:
    """Round w [out, in] to the nearest points of its own min-max grid; raises what `grid_of` raises."""
    scale, zero = grid_of(w, bits, group_size, symmetric=symmetric, name=name)
    return round_to_grid(w, scale, zero, bits, group_size)


def check_weight(w: torch.Tensor, bits: int, group_size: int, name: str) -> None:
    """Raise ConfigError unless w [out, in] can be quantized like this."""
    if not 2 <= bits <= 8:
        raise ConfigError(f"{name}: {bits} bits; integer weights take 2 to 8")
    check_group_size(w.shape[1], group_size, name)
    if not bool(torch.isfinite(w).all()):
        raise ConfigError(f"{name} has NaN or infinite weights, which have no place on a grid; check the checkpoint")


def check_group_size(width: int, group_size: int, name: str) -> None:
    """Raise ConfigError unless groups of `group_size` divide `width`, naming the sizes near it that do."""
    if group_size >= 1 and width % group_size == 0:
        return
    divisors = [size for size in range(1, width + 1) if width % size == 0]
    near = sorted(sorted(divisors, key=lambda size: abs(size - group_size))[:4])
    raise ConfigError(
        f"{name} has {width} inputs, which groups of {group_size} do not divide; sizes near it that do: "
        f"{', '.join(map(str, near))}"
    )
