"""Floating-point numbers of a few bits: FP8 E4M3 and E5M2 (Micikevicius et al. 2022), and E2M1 (OCP Microscaling, 2023).

              sign  exponent  mantissa    bias   largest   smallest normal    step below it    above the largest
    E4M3FN    s     eeee      mmm            7       448              2^-6             2^-9    NaN (no infinity)
    E5M2      s     eeeee     mm            15    57,344             2^-14            2^-16    infinity
    E2M1      s     ee        m              1         6               1.0              0.5    no code left: saturates

    value = ±1.mmm · 2^(e - bias);  e = 0: ±0.mmm · 2^(1 - bias), the subnormals, equally spaced down to zero

Rounding is to the nearest number, half to even, as IEEE 754 has it: between two powers of two the numbers are equally spaced,
so a value is divided by that step, rounded to an integer and multiplied again, all of it exact in float32.
"""

from dataclasses import dataclass
from functools import cache

import torch


@dataclass(frozen=True, slots=True)
class SmallFloat:
    """A format of 1 + exponent_bits + mantissa_bits bits."""

    exponent_bits: int
    mantissa_bits: int
    bias: int
    largest: float
    overflow: float
    """What lies above the largest: infinity, NaN, or, where neither has a code, the largest again."""

    @property
    def bits(self) -> int:
        """Bits of a value."""
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def _smallest_exponent(self) -> int:
        return 1 - self.bias

    def round(self, x: torch.Tensor, *, saturate: bool = False) -> torch.Tensor:
        """Return the format's number nearest to x, in float32; beyond the largest: `overflow`, or ±largest if `saturate`."""
        x = x.float()
        step = power_of_two(self._exponent(x) - self.mantissa_bits)
        rounded = torch.where(x.isfinite(), torch.round(x / step) * step, x)
        too_large = rounded.abs() > self.largest  # false for NaN, which stays
        limit = self.largest if saturate else self.overflow
        return torch.where(too_large, torch.copysign(torch.tensor(limit, device=x.device), x), rounded)

    def encode(self, x: torch.Tensor, *, saturate: bool = False) -> torch.Tensor:
        """Return the codes of `round(x)`, uint8 of x's shape: sign, exponent, mantissa from the highest bit down."""
        value = self.round(x, saturate=saturate)
        magnitude = value.abs()
        exponent = self._exponent(magnitude)
        steps = (magnitude / power_of_two(exponent - self.mantissa_bits)).nan_to_num(posinf=0.0)  # 0 … 2^(m + 1) - 1
        # A normal number has 2^m steps or more: its leading one, added to e - 1, makes it e.
        codes = ((exponent - self._smallest_exponent) << self.mantissa_bits) + steps.to(torch.int32)
        top = (1 << (self.bits - 1)) - 1
        codes = torch.where(magnitude.isnan(), top, codes)
        codes = torch.where(magnitude.isinf(), top ^ ((1 << self.mantissa_bits) - 1), codes)  # all exponent bits
        return (codes | (value.signbit().to(torch.int32) << (self.bits - 1))).to(torch.uint8)

    def _exponent(self, x: torch.Tensor) -> torch.Tensor:
        """Return floor(log2 |x|), but for subnormals and zero the exponent that they share, int32."""
        mantissa, exponent = torch.frexp(x)  # x = mantissa · 2^exponent, |mantissa| in [0.5, 1)
        return torch.where(mantissa == 0, self._smallest_exponent, (exponent - 1).clamp_min(self._smallest_exponent))

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Return the numbers that codes (uint8) stand for, float32."""
        return _values(self, codes.device)[codes.long()]


E4M3 = SmallFloat(4, 3, bias=7, largest=448.0, overflow=float("nan"))
E5M2 = SmallFloat(5, 2, bias=15, largest=57_344.0, overflow=float("inf"))
E2M1 = SmallFloat(2, 1, bias=1, largest=6.0, overflow=6.0)


def power_of_two(exponent: torch.Tensor) -> torch.Tensor:
    """Return 2^exponent for int32 exponents of -127 to 127, exact: the bits of the float32 are put together."""
    bits = torch.where(exponent > -127, (exponent + 127) << 23, 1 << 22)  # 2^-127 is subnormal
    return bits.to(torch.int32).view(torch.float32)


@cache
def _values(kind: SmallFloat, device: torch.device) -> torch.Tensor:
    """Every code's value, by the formula at the top; copied to a device once, which a captured graph could not do."""
    half = 1 << (kind.bits - 1)
    values = []
    for code in range(half):
        exponent, mantissa = divmod(code, 1 << kind.mantissa_bits)
        fraction = mantissa / (1 << kind.mantissa_bits)
        value = (1 + fraction) * 2.0 ** (exponent - kind.bias) if exponent else fraction * 2.0 ** (1 - kind.bias)
        if value > kind.largest:
            value = kind.overflow if mantissa == 0 else float("nan")
        values.append(value)
    return torch.tensor([*values, *(-value for value in values)], device=device)
