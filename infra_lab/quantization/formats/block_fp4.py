"""Four-bit floats (E2M1) with a scale a block: MXFP4 (OCP Microscaling Formats, version 1.0, 2023) and NVFP4 (Blackwell, 2024).

    E2M1    0  0.5  1  1.5  2  3  4  6, and their negatives

    MXFP4   │ E8M0 scale, 8 bits: 2^(s - 127) │ 32 elements │      w = 2^(s - 127) · element                4.25 bits a weight
    NVFP4   │ E4M3 scale, 8 bits              │ 16 elements │      w = tensor scale · scale · element       4.5 bits a weight

MXFP4's scale is a power of two: the largest one that brings the block's largest magnitude to 4 … 8, of which what lies above
6 saturates. NVFP4 has finer scales over shorter blocks: each brings its block's largest to 6, but for its own rounding; one
float32 for the whole tensor brings the scales themselves into E4M3's range.
"""

import torch

from infra_lab.quantization.formats.small_floats import E2M1, E4M3, power_of_two

MX_BLOCK, NV_BLOCK = 32, 16
_E8M0_BIAS = 127
_LARGEST_EXPONENT = 2
"""Of E2M1: 6 is 1.5 · 2²."""


def quantize_mxfp4(w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (codes, scale) of w [out, in]: uint8 [out, in], E2M1, and uint8 [out, in / 32], E8M0."""
    blocks = w.float().reshape(w.shape[0], -1, MX_BLOCK)
    _, exponent = torch.frexp(blocks.abs().amax(dim=2))  # floor(log2) + 1; 0 for 0
    scale = (exponent - 1 - _LARGEST_EXPONENT + _E8M0_BIAS).clamp(0, 254).to(torch.uint8)  # 255 is NaN
    codes = E2M1.encode(blocks / e8m0_values(scale).unsqueeze(2), saturate=True)
    return codes.view(w.shape), scale


def e8m0_values(scale: torch.Tensor) -> torch.Tensor:
    """Return the powers of two that E8M0 codes stand for, float32."""
    return power_of_two(scale.to(torch.int32) - _E8M0_BIAS)


def quantize_nvfp4(w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (codes, scale, tensor_scale) of w [out, in]: uint8 [out, in], E2M1; uint8 [out, in / 16], E4M3; float32 []."""
    blocks = w.float().reshape(w.shape[0], -1, NV_BLOCK)
    largest = blocks.abs().amax(dim=2)
    tensor_scale = largest.max() / (E2M1.largest * E4M3.largest)
    tensor_scale = torch.where(tensor_scale > 0, tensor_scale, 1.0)
    scale = E4M3.encode(largest / E2M1.largest / tensor_scale, saturate=True)
    steps = E4M3.decode(scale) * tensor_scale  # of the blocks, as they will be read; 0 for a block of nothing much
    codes = E2M1.encode(blocks / torch.where(steps > 0, steps, torch.inf).unsqueeze(2), saturate=True)
    return codes.view(w.shape), scale, tensor_scale
