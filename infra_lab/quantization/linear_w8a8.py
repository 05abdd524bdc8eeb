"""Linear layers whose activations are quantized too (W8A8): int8 · int8, and FP8 · FP8.

    x → (q, token scale), per token and at every step         y = token scale · channel scale · (q · Wqᵀ) + bias

    dynamic   a token's scale is its own largest magnitude / limit: nothing to calibrate, one more pass over the activations
    static    one scale for all, from calibration (FP8 only here): no pass, but what lies beyond it saturates

On a GPU the product runs on 8-bit tensor cores (`kernels.quantized_matmul`): twice bfloat16's arithmetic, half its bytes. A CPU
has no fast product for it in torch (`_int_mm` was measured five times slower than a dense float32 product at one row), so there
it is computed exactly, but by float arithmetic:

    few rows, int8    integers up to 127 are exact in bfloat16: the kernel for int8 weights takes them; only y is rounded to it
    otherwise         tile by tile in float32, in pieces of 1,024 inputs for int8: 127 · 127 · 1,024 < 2^24, so sums are exact

Follows LLM.int8() and ZeroQuant (Dettmers et al., Yao et al. 2022) for scales a token, SmoothQuant (Xiao et al. 2022).
"""

import torch

import kernels
from infra_lab.quantization.float_weights import Float8Weight
from infra_lab.quantization.linear import Int8Linear, has_int8_kernel
from infra_lab.quantization.linear_tiled import tiled_product
from kernels.quantize import FP8_LIMIT, quantize_fp8, quantize_int8
from kernels.quantized_matmul import scaled_matmul

_EXACT_INPUTS = 1024
_TILE = 1 << 18


class Int8ActivationLinear:
    """int8 weights with a scale an output channel, int8 activations with a scale a token."""

    def __init__(self, q: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self.q = q  # [out, in] int8
        self.scale = scale.float()  # [out]
        self.bias = bias
        self.weight_bytes = q.nbytes + self.scale.nbytes
        self._ones = torch.ones_like(self.scale, dtype=torch.bfloat16)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Map x [T, in] to [T, out] in the dtype of x."""
        q, token_scale = quantize_int8(x)
        if kernels.launches_on(x.device):
            y: torch.Tensor = scaled_matmul(q, self.q.t(), token_scale.squeeze(-1), self.scale, self.bias, x.dtype)
            return y
        if x.shape[0] <= Int8Linear.max_packed_rows and not x.is_cuda and has_int8_kernel():
            sums = torch._weight_int8pack_mm(q.to(torch.bfloat16), self.q, self._ones).float()
        else:
            sums = integer_product(q, self.q)
        y = sums.mul_(self.scale).mul_(token_scale)
        return (y if self.bias is None else y.add_(self.bias)).to(x.dtype)


def integer_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return a [T, in] · bᵀ [in, out] of int8 as float32: exact up to 1,024 inputs, then rounded once for each 1,024 more."""
    num_out, num_in = b.shape
    y = torch.zeros(a.shape[0], num_out, device=a.device)
    wide, step = a.float(), max(1, _TILE // min(num_in, _EXACT_INPUTS))
    for start in range(0, num_in, _EXACT_INPUTS):
        inputs = slice(start, start + _EXACT_INPUTS)
        for row in range(0, num_out, step):
            rows = slice(row, row + step)
            y[:, rows] += wide[:, inputs] @ b[rows, inputs].float().t()
    return y


class Float8Linear:
    """FP8 E4M3 weights with a scale an output channel, FP8 activations with a scale a token, or with one static scale."""

    def __init__(
        self, weight: Float8Weight, bias: torch.Tensor | None = None, input_scale: float | None = None
    ) -> None:
        self.weight = weight
        self.bias = bias
        self.input_scale = input_scale
        self.weight_bytes = weight.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Map x [T, in] to [T, out] in the dtype of x."""
        if self.input_scale is None:
            q, token_scale = quantize_fp8(x)
        else:
            stretched = (x.float() / self.input_scale).clamp_(-FP8_LIMIT, FP8_LIMIT)
            q = stretched.to(torch.float8_e4m3fn)
            token_scale = torch.full((x.shape[0], 1), self.input_scale, device=x.device)
        if kernels.launches_on(x.device):
            scales = token_scale.squeeze(-1), self.weight.scale
            y: torch.Tensor = scaled_matmul(q, self.weight.q.t(), *scales, self.bias, x.dtype)
            return y
        y = tiled_product(q.float(), self.weight).mul_(token_scale)
        return (y if self.bias is None else y.add_(self.bias)).to(x.dtype)
