"""Linear layers y = x · Wᵀ + b, dense and with weights of 8 or 4 bits."""

from functools import cache
from typing import Protocol

import torch
import torch.nn.functional as F


class Linear(Protocol):
    """A linear layer that keeps its weights however it likes."""

    weight_bytes: int
    """Bytes that one application reads: what a decode step streams from memory."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Map x [T, in] to [T, out] in the dtype of x."""
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
    weight, x = torch.randn(32, 64).to(torch.bfloat16), torch.randn(2, 64).to(torch.bfloat16)
    try:
        y = PrepackedLinear(weight)(x)
    except (AttributeError, RuntimeError, NotImplementedError):  # not built in, or another signature
        return False
    return torch.allclose(y.float(), F.linear(x, weight).float(), atol=0.1, rtol=0.02)


class Int8Linear:
    """Symmetric int8 weights with one scale an output channel: W[o, i] ≈ scale[o] · q[o, i], q in [-127, 127].

    Wins where the weights' traffic is the cost: at few rows half of bfloat16's bytes are read. Loses at many rows, where
    arithmetic is the cost: there the weights are widened and multiplied like dense ones (`max_packed_rows`).
    """

    max_packed_rows = 32

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        largest = weight.abs().amax(dim=1, keepdim=True).float().clamp_min_(1e-12)  # [out, 1]
        scale = largest / 127.0
        self.quantized = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
        for rows in range(0, weight.shape[0], 4096):  # in pieces: the float32 copy of an embedding would be large
            piece = slice(rows, rows + 4096)
            self.quantized[piece] = torch.round(weight[piece].float() / scale[piece]).to(torch.int8)
        self.scale = scale.squeeze(1).to(weight.dtype)  # [out]
        self.bias = bias
        self.weight_bytes = self.quantized.nbytes + self.scale.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Map x [T, in] to [T, out]."""
        if x.shape[0] <= self.max_packed_rows and x.dtype is torch.bfloat16 and not x.is_cuda:
            y: torch.Tensor = torch._weight_int8pack_mm(x, self.quantized, self.scale)
        else:
            y = F.linear(x, self.quantized.to(x.dtype)).mul_(self.scale.to(x.dtype))
        return y if self.bias is None else y.add_(self.bias)

    def rows(self, indices: torch.Tensor) -> torch.Tensor:
        """Rows of the weight, widened: [len(indices), in]."""
        return self.quantized[indices].to(self.scale.dtype) * self.scale[indices].unsqueeze(1)


class Int4Linear:
    """Asymmetric 4-bit weights, a scale and a zero point for every `group_size` inputs of an output channel.

    W[o, i] ≈ scale[g, o] · (q[o, i] - 8) + zero[g, o], q in [0, 15], g = i // group_size: the layout of torch's
    weight-only int4 kernel. Rounding is to the nearest (RTN). CPU and bfloat16 activations.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None, *, group_size: int = 32) -> None:
        num_out, num_in = weight.shape
        grouped = weight.float().view(num_out, num_in // group_size, group_size)
        low = grouped.amin(dim=2, keepdim=True)  # [out, groups, 1]
        scale = ((grouped.amax(dim=2, keepdim=True) - low) / 15.0).clamp_min_(1e-9)
        q = torch.round((grouped - low) / scale).clamp_(0, 15).to(torch.int32).view(num_out, num_in)
        self.packed = torch._convert_weight_to_int4pack_for_cpu(q, 1)
        zero = low + 8 * scale
        self.scales_and_zeros = (
            torch.cat([scale, zero], dim=2).transpose(0, 1).contiguous().to(torch.bfloat16)
        )  # [groups, out, 2]
        self.group_size = group_size
        self.bias = bias
        self.weight_bytes = num_out * num_in // 2 + self.scales_and_zeros.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Map x [T, in] to [T, out]."""
        y: torch.Tensor = torch._weight_int4pack_mm_for_cpu(
            x.to(torch.bfloat16), self.packed, self.group_size, self.scales_and_zeros
        ).to(x.dtype)
        return y if self.bias is None else y.add_(self.bias)
