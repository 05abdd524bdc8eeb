"""SwiGLU's gate (Shazeer 2020).

y = silu(gate) · up,   silu(a) = a / (1 + exp(-a))
"""

import torch
import torch.nn.functional as F

from kernels.cost import Cost


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """Halve gate_up [T, 2·I] into gate and up, and return silu(gate) · up [T, I] in the same dtype."""
    gate, up = gate_up.chunk(2, dim=-1)  # each [T, I]
    return F.silu(gate).mul_(up)


def silu_mul_cost(num_tokens: int, intermediate_size: int, dtype_bytes: int) -> Cost:
    """Two inputs, one output; about five operations an element, the exponential counted as one."""
    elements = num_tokens * intermediate_size
    return Cost(flops=5 * elements, num_bytes=3 * elements * dtype_bytes)
