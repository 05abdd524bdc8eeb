"""Linear layers y = x · Wᵀ + b: the seam, dense weights, and weights of 8 bits with a scale a row."""

from functools import cache
from typing import Protocol

import torch
import torch.nn.functional as F

from infra_lab.quantization.grouped import GroupedInt


class Linear(Protocol):
    """A linear layer that keeps its weights however it likes."""

    weight_bytes: int
    """Bytes that one application reads: what a decode step streams from memory."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Map x [T, in] to [T, out] in the dtype of x."""
        ...


class RowLinear(Linear, Protocol):
    """A linear layer whose weight can be read row by row: an embedding that may be the output layer too."""

    def rows(self, indices: torch.Tensor) -> torch.Tensor:
        """Return rows of the weight in the engine's dtype, [len(indices), in]."""
        ...


class DenseLinear:
    """Weights in a floating-point dtype, [out, in]."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self.weight = weight
        self.bias = bias
        self.weight_bytes = weight.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Map x [T, in] to [T, out]."""
        return F.linear(x, self.weight, self.bias)

    def rows(self, indices: torch.Tensor) -> torch.Tensor:
        """Rows of the weight, [len(indices), in]: an embedding that shares its weights with the output layer."""
        return F.embedding(indices, self.weight)


class PrepackedLinear:
    """bfloat16 weights in oneDNN's own blocked layout, the one that its CPU kernels want.

    The numbers are the same; a plain matrix would be rearranged at every call. Wins most at few rows (about 1.5 times at
    1 to 16 on AVX-512), little at many. There is no way back to rows, so an embedding cannot be stored like this.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight)
        self.bias = bias
        self.weight_bytes = weight.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Map x [T, in] to [T, out]."""
        y: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
        return y


@cache
def can_prepack() -> bool:
    """Whether this torch and this CPU have oneDNN's packed bfloat16 product, tried out once on a small matrix."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(32, 64, generator=generator).to(torch.bfloat16)
    x = torch.randn(2, 64, generator=generator).to(torch.bfloat16)
    try:
        y = PrepackedLinear(weight)(x)
    except (AttributeError, RuntimeError, NotImplementedError):  # not built in, or another signature
        return False
    return torch.allclose(y.float(), F.linear(x, weight).float(), atol=0.1, rtol=0.02)


class Int8Linear:
    """Symmetric int8 weights with one scale an output channel: W[o, i] = scale[o] · q[o, i], q in [-127, 127].

    Wins where the weights' traffic is the cost: at few rows half of bfloat16's bytes are read. Loses at many rows, where
    arithmetic is the cost: there the weights are widened and multiplied like dense ones (`max_packed_rows`).

    The CPU's kernel multiplies in bfloat16, so at few rows a float32 engine's activations are rounded to it: 0.2 % a value,
    a fifth of what 8-bit weights are off by. Scales are bfloat16 for that kernel, and the codes are taken on that grid.
    """

    max_packed_rows = 32

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        largest = weight.abs().amax(dim=1, keepdim=True).float().clamp_min_(1e-12)  # [out, 1]
        scale = (largest / 127.0).to(torch.bfloat16)
        q = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
        for rows in range(0, weight.shape[0], 4096):  # in pieces: the float32 copy of an embedding would be large
            piece = slice(rows, rows + 4096)
            q[piece] = torch.round(weight[piece].float() / scale[piece].float()).clamp_(-127, 127).to(torch.int8)
        self._set(q, scale.squeeze(1), bias, weight.dtype)

    @classmethod
    def from_codes(
        cls, q: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype
    ) -> "Int8Linear":
        """Take int8 codes [out, in] and scales [out] as they are; `dtype` is the engine's."""
        layer = cls.__new__(cls)
        layer._set(q, scale.to(torch.bfloat16), bias, dtype)
        return layer

    def _set(self, q: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype) -> None:
        self.quantized, self.scale, self.bias, self.dtype = q, scale, bias, dtype
        self.weight_bytes = q.nbytes + scale.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Map x [T, in] to [T, out]."""
        if x.shape[0] <= self.max_packed_rows and not x.is_cuda and has_int8_kernel():
            y: torch.Tensor = torch._weight_int8pack_mm(x.to(torch.bfloat16), self.quantized, self.scale).to(x.dtype)
        else:
            y = F.linear(x, self.quantized.to(x.dtype)).mul_(self.scale.to(x.dtype))
        return y if self.bias is None else y.add_(self.bias)

    def rows(self, indices: torch.Tensor) -> torch.Tensor:
        """Rows of the weight, widened: [len(indices), in]."""
        return self.quantized[indices].to(self.dtype) * self.scale[indices].to(self.dtype).unsqueeze(1)


def int8_codes(weight: GroupedInt) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (q int8 [out, in], scale [out]) of symmetric 8-bit weights with one group a row."""
    return (weight.q.to(torch.int16) - 128).to(torch.int8), weight.scale.squeeze(1)


@cache
def has_int8_kernel() -> bool:
    """Whether this torch has the CPU kernel for int8 weights, tried out once on a small matrix."""
    generator = torch.Generator().manual_seed(0)  # the same answer in every process, close call or not
    x = torch.randn(2, 64, generator=generator).to(torch.bfloat16)
    q = torch.randint(-127, 128, (32, 64), dtype=torch.int8, generator=generator)
    scale = torch.rand(32, generator=generator).to(torch.bfloat16)
    try:
        y = torch._weight_int8pack_mm(x, q, scale)
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    expected = F.linear(x.float(), q.float()).mul_(scale.float())
    return torch.allclose(y.float(), expected, atol=0.5, rtol=0.02)
