"""RMSNorm (Zhang and Sennrich 2019).

    y = x / sqrt(mean(x²) + eps) · weight

The mean is taken in float32 whatever the dtype of x: squares of bfloat16 values lose the digits that matter.
"""

import torch
import torch.nn.functional as F

from kernels.cost import Cost


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Normalise the last dimension of x [..., H] by its root mean square and scale by weight [H]; same dtype as x."""
    return F.rms_norm(x, (x.shape[-1],), weight, eps)


def rms_norm_cost(num_tokens: int, hidden_size: int, dtype_bytes: int) -> Cost:
    """Read x once, write y once; the weight stays in cache."""
    elements = num_tokens * hidden_size
    return Cost(flops=4 * elements, num_bytes=(2 * elements + hidden_size) * dtype_bytes)
