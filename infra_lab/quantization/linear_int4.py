"""Linear layers with weights of 4 bits in groups: on torch's CPU kernel, and on the project's W4A16 kernel.

Both take a group's scale and its middle, the value at code 8; with weights about zero, the middle is small, and rounding it to
16 bits harmless:

    W[o, i] = scale[o, g] · (q[o, i] - 8) + middle[o, g]        middle = scale · (8 - zero)

Weights of 3 (or 2) bits run in the same layouts. Their codes 0 … 7 become 4 … 11, so that 8 is their middle too: otherwise two
large rounded numbers would cancel. They take 4 bits of memory; only a saved checkpoint has the smaller size.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from infra_lab.quantization.cpu_int4 import cpu_int4_matmul, pack_cpu_int4, unpack_cpu_int4
from infra_lab.quantization.grouped import KERNEL_GROUP_SIZES, GroupedInt
from kernels.w4a16 import pack_w4, unpack_w4, w4a16_matmul


class MiddleGroups(NamedTuple):
    """4-bit weights as the layers take them: W = scale · (q - 8) + middle."""

    q: torch.Tensor
    """[out, in] uint8, 0 … 15."""
    scale: torch.Tensor
    """[out, groups]."""
    middle: torch.Tensor
    """[out, groups]."""

    @property
    def group_size(self) -> int:
        """Inputs that share a scale."""
        return self.q.shape[1] // self.scale.shape[1]

    def dequantize(self, dtype: torch.dtype) -> torch.Tensor:
        """Return [out, in], computed in float32 (float64 if that is asked for)."""
        exact = torch.float64 if dtype is torch.float64 else torch.float32
        q = self.q.view(*self.scale.shape, -1).to(exact).sub_(8)
        scale, middle = self.scale.to(exact).unsqueeze(2), self.middle.to(exact).unsqueeze(2)
        return q.mul_(scale).add_(middle).view(self.q.shape).to(dtype)

    def grouped(self) -> GroupedInt:
        """Return the form with a zero point."""
        scale = self.scale.float()
        return GroupedInt(self.q, scale, 8 - self.middle.float() / scale, 4, self.group_size)


def middle_groups(weight: GroupedInt) -> MiddleGroups:
    """Return weights of at most 4 bits in the form with a middle."""
    half = 2 ** (weight.bits - 1)
    return MiddleGroups(weight.q + (8 - half), weight.scale, weight.scale * (half - weight.zero))


class Int4Linear:
    """On the CPU, by torch's kernel, with activations in bfloat16 (a float32 engine's are rounded to it, 0.2 % a value).

    Half a byte a weight and 4 bytes a group: 5 bits a weight for groups of 32, 4.25 for 128. Wins at every number of rows over
    widening first; at many rows the arithmetic is the cost, and it is no faster than dense.
    """

    def __init__(self, weight: MiddleGroups, bias: torch.Tensor | None = None) -> None:
        self.packed = pack_cpu_int4(weight.q)
        pair = torch.stack([weight.scale, weight.middle], dim=2)
        self.scale_middle = pair.transpose(0, 1).contiguous().to(torch.bfloat16)  # [groups, out, 2]
        self.group_size = weight.group_size
        self.bias = bias
        self.weight_bytes = self.packed.nbytes + self.scale_middle.nbytes

    @staticmethod
    def fits(num_out: int, group_size: int) -> bool:
        """Whether the kernel takes such a matrix."""
        return num_out % 16 == 0 and group_size in KERNEL_GROUP_SIZES

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Map x [T, in] to [T, out]."""
        y = cpu_int4_matmul(x.to(torch.bfloat16), self.packed, self.group_size, self.scale_middle).to(x.dtype)
        return y if self.bias is None else y.add_(self.bias)

    def weights(self) -> MiddleGroups:
        """What the layer multiplies by."""
        scale, middle = self.scale_middle.transpose(0, 1).unbind(2)
        return MiddleGroups(unpack_cpu_int4(self.packed), scale.contiguous(), middle.contiguous())


class W4A16Linear:
    """On a GPU, by `kernels.w4a16`: activations of 16 bits, integer zero points.

    The zero points of min-max grids and of GGUF files are no integers. Each is rounded, and what is left of it, a constant over
    the group's inputs, is multiplied by their sum in a second, small product: 1/group_size of the first. It is left out where
    all zero points are integers (symmetric weights).
    """

    max_packed_rows = 64

    def __init__(self, weight: MiddleGroups, bias: torch.Tensor | None, dtype: torch.dtype) -> None:
        scale, middle = weight.scale.to(dtype).float(), weight.middle.float()
        zero = (8 - middle / scale).round_().clamp_(0, 15)
        rest = (middle - scale * (8 - zero)).to(dtype).t().contiguous()  # [groups, out]
        self.packed = pack_w4(weight.q, weight.group_size)
        self.scale = scale.to(dtype).t().contiguous()
        self.zero = zero.to(torch.uint8).t().contiguous()
        self.rest = rest if bool(rest.any()) else None
        self.group_size = weight.group_size
        self.bias = bias
        parts = (self.packed, self.scale, self.zero, *(() if self.rest is None else (self.rest,)))
        self.weight_bytes = sum(part.nbytes for part in parts)

    @staticmethod
    def fits(group_size: int, dtype: torch.dtype) -> bool:
        """Whether the kernel takes such groups and such activations."""
        return group_size in KERNEL_GROUP_SIZES and dtype in (torch.bfloat16, torch.float16)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Map x [T, in] to [T, out]; beyond `max_packed_rows` the weights are unpacked once and multiplied as dense ones."""
        if x.shape[0] > self.max_packed_rows:
            return F.linear(x, self.weights().dequantize(x.dtype), self.bias)
        y: torch.Tensor = w4a16_matmul(x, self.packed, self.scale, self.zero, self.bias)
        if self.rest is not None:
            sums = x.reshape(x.shape[0], -1, self.group_size).sum(dim=2)  # [T, groups]
            y.addmm_(sums, self.rest)
        return y

    def weights(self) -> MiddleGroups:
        """What the layer multiplies by."""
        scale = self.scale.t().float()
        middle = scale * (8 - self.zero.t().float())
        if self.rest is not None:
            middle += self.rest.t().float()
        return MiddleGroups(unpack_w4(self.packed, self.group_size), scale.contiguous(), middle.contiguous())
