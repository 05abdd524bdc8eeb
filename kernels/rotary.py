"""Rotary position embedding (RoPE; Su et al. 2021), in the half-split layout of Llama, Qwen2 and Qwen3.

Element i of a head and element i + D/2 are the two coordinates of one plane, turned by the angle position · freq[i]:

    y[i]       = x[i] · cos - x[i + D/2] · sin
    y[i + D/2] = x[i + D/2] · cos + x[i] · sin

With `sin` stored as (-sin, +sin) over the two halves, both lines are one: y = x · cos + roll(x, D/2) · sin.
"""

import torch

from kernels.cost import Cost


def apply_rotary(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn every head by its token's position.

    heads: [T, H, D], query and key heads side by side. cos, sin: [T, 1, D], sin already signed (see above).
    Returns a new contiguous tensor [T, H, D] of the same dtype.
    """
    return torch.addcmul(heads * cos, heads.roll(heads.shape[-1] // 2, dims=-1), sin)


def apply_rotary_cost(num_tokens: int, num_heads: int, head_dim: int, dtype_bytes: int) -> Cost:
    """Read and write each head once; cos and sin are shared by a token's heads."""
    elements = num_tokens * num_heads * head_dim
    return Cost(flops=3 * elements, num_bytes=(2 * elements + 2 * num_tokens * head_dim) * dtype_bytes)
