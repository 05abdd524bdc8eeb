"""Eight-bit weights in groups (GGUF's Q8_0) on a kernel that has only four bits: q = 16 · high + low.

    q      -128 … 127         e.g. -37 = 16 · (-3) + 11           W = scale · q = 16 · scale · high + scale · low
    high     -8 … 7                -3                              one product with scales 16 times as large
    low       0 … 15               11                              one with the scales as they are

torch has a CPU kernel for int8 weights with a scale a row, none for scales in groups. Measured at one row, one thread, on
16,384 × 576 (AVX2; dense bfloat16: 2.3 ms): this 2.8 ms; tiles widened to float32 and scaled 5.2 ms; a batched product over
the groups 12.9 ms; rounded again to a scale a row 2.1 ms, but that is another weight. Codes are kept exactly; scales are
bfloat16, as the kernel has them, and there are two sets: 10 bits a weight for groups of 32, where Q8_0 has 8.5.
"""

import torch

from infra_lab.quantization.cpu_int4 import cpu_int4_matmul, pack_cpu_int4, unpack_cpu_int4
from infra_lab.quantization.grouped import GroupedInt


class SplitInt8Linear:
    """Symmetric 8-bit weights in groups on torch's CPU kernel for 4 bits; also an embedding: rows are put together again."""

    def __init__(self, weight: GroupedInt, bias: torch.Tensor | None, dtype: torch.dtype) -> None:
        self.high = pack_cpu_int4(weight.q >> 4)
        self.low = pack_cpu_int4(weight.q & 15)
        scale = weight.scale.t().contiguous().to(torch.bfloat16)  # [groups, out]
        # q is stored as 0 … 255: its high half minus 8 is already `high`, and the kernel subtracts 8 from the low half too.
        self.high_scale = torch.stack([16 * scale, torch.zeros_like(scale)], dim=2)
        self.low_scale = torch.stack([scale, 8 * scale], dim=2)
        self.group_size, self.bias, self.dtype = weight.group_size, bias, dtype
        parts = (self.high, self.low, self.high_scale, self.low_scale)
        self.weight_bytes = sum(part.nbytes for part in parts)

    @staticmethod
    def fits(weight: GroupedInt) -> bool:
        """Whether the zero points are all 128."""
        return bool((weight.zero == 128).all())

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Map x [T, in] to [T, out] in the dtype of x."""
        rounded = x.to(torch.bfloat16)
        y = cpu_int4_matmul(rounded, self.high, self.group_size, self.high_scale).to(torch.float32)
        y += cpu_int4_matmul(rounded, self.low, self.group_size, self.low_scale)
        y = y.to(x.dtype)
        return y if self.bias is None else y.add_(self.bias)

    def rows(self, indices: torch.Tensor) -> torch.Tensor:
        """Rows of the weight in the engine's dtype, [len(indices), in]."""
        codes = self._codes(indices)
        scale = self.low_scale[:, indices, 0].t().float()  # [rows, groups]
        grouped = codes.view(*scale.shape, -1).float().sub_(128)
        return grouped.mul_(scale.unsqueeze(2)).view(codes.shape).to(self.dtype)

    def weights(self) -> GroupedInt:
        """What the layer multiplies by."""
        scale = self.low_scale[:, :, 0].t().float().contiguous()
        return GroupedInt(self._codes(None), scale, torch.full_like(scale, 128), 8, self.group_size)

    def _codes(self, indices: torch.Tensor | None) -> torch.Tensor:
        return (unpack_cpu_int4(self.high, indices) << 4) | unpack_cpu_int4(self.low, indices)
