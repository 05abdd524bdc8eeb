"""The fallback that runs everything: weights are widened tile by tile, multiplied, and forgotten.

A tile of 2^18 float32 values fits in a core's cache, so what comes from memory is the packed weights alone, but each weight
costs a few instructions at every step: on a CPU this is slower than dense weights in bfloat16, by four to ten times at one row.
It saves memory, and it says what a format does to a model's answers. On a GPU a tile is large enough to keep it busy.
"""

from typing import Protocol

import torch

from infra_lab.quantization.float_weights import TableWeight
from infra_lab.quantization.grouped import GroupedInt

_CPU_TILE, _GPU_TILE = 1 << 18, 1 << 24


class TileWeight(Protocol):
    """A weight that can be widened in part."""

    @property
    def shape(self) -> torch.Size:
        """[out, in]."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of everything that is kept."""
        ...

    def dequantize(self, dtype: torch.dtype = torch.float32, rows: slice = slice(None)) -> torch.Tensor:
        """Return rows of the weight, [rows, in]."""
        ...


class TiledLinear:
    """y = x · Wᵀ + bias in float32 on a CPU and in the dtype of x on a GPU, a tile of output channels at a time."""

    def __init__(self, weight: "GroupedInt | TableWeight", bias: torch.Tensor | None = None) -> None:
        self.weight = weight
        self.bias = bias
        self.weight_bytes = weight.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Map x [T, in] to [T, out] in the dtype of x."""
        dtype = x.dtype if x.is_cuda else torch.float32
        y = tiled_product(x.to(dtype), self.weight).to(x.dtype)
        return y if self.bias is None else y.add_(self.bias)


def tiled_product(x: torch.Tensor, weight: TileWeight) -> torch.Tensor:
    """Return x [T, in] · weightᵀ in the dtype of x, widening so many rows at a time as fit a tile."""
    num_out, num_in = weight.shape
    step = max(1, (_GPU_TILE if x.is_cuda else _CPU_TILE) // num_in)
    y = torch.empty(x.shape[0], num_out, dtype=x.dtype, device=x.device)
    for start in range(0, num_out, step):
        rows = slice(start, min(start + step, num_out))
        torch.mm(x, weight.dequantize(x.dtype, rows).t(), out=y[:, rows])
    return y
