"""What products ask of their operands and of the GPU: shapes that match, rows that TMA can copy, how much there is to fill."""

import torch

from kernels.device import device_limits
from kernels.triton_api import triton

_INTERPRETED_MULTIPROCESSORS = 4


def check_product(
    a: torch.Tensor,
    b: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    dtypes: tuple[torch.dtype, ...],
) -> None:
    """Raise ValueError unless a [M, K], b [K, N], bias [N] and residual [M, N] go together and a, b have one of the dtypes."""
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[0]:
        raise ValueError(f"a is {list(a.shape)} and b {list(b.shape)}; they must be [M, K] and [K, N]")
    if a.dtype != b.dtype or a.dtype not in dtypes:
        raise ValueError(f"a is {a.dtype} and b {b.dtype}; both must be one of {', '.join(map(str, dtypes))}")
    M, N = a.shape[0], b.shape[1]
    if bias is not None and bias.shape != (N,):
        raise ValueError(f"bias is {list(bias.shape)}; it must be [{N}], a value for each column of b")
    if residual is not None and residual.shape != (M, N):
        raise ValueError(f"residual is {list(residual.shape)}; it must be [{M}, {N}], as the product is")


def num_multiprocessors(device: torch.device) -> int:
    """Return what a plan has to fill; few of them in the interpreter, where each program takes its turn."""
    return device_limits(device).multiprocessors if device.type == "cuda" else _INTERPRETED_MULTIPROCESSORS


def can_copy_tiles(x: torch.Tensor) -> bool:
    """Whether TMA can fetch tiles of x [R, C]: elements of a row adjacent, and rows that start at multiples of 16 bytes."""
    if device_limits(x.device).capability < 90:
        return False
    row_bytes = x.stride(0) * x.element_size()
    return x.stride(1) == 1 and row_bytes > 0 and row_bytes % 16 == 0 and x.data_ptr() % 16 == 0 and min(x.shape) > 0


def allow_descriptors(device: torch.device) -> None:
    """Let what this thread launches next make TMA descriptors: they lie in memory that Triton asks its caller for."""
    triton.set_allocator(lambda size, alignment, stream: torch.empty(size, dtype=torch.int8, device=device))
