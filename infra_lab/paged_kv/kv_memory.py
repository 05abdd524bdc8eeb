"""The memory behind the block manager's numbers: one tensor a layer, [num_blocks, block_size, 2, Hkv, D]."""

import math
from collections.abc import Sequence

import numpy as np
import torch

import kernels
from infra_lab.paged_kv.block_manager import BlockCopy


class KVMemory:
    """Keys and values of all layers, addressed by physical block.

    Zeroed at the start: attention masks what it must not see, but zero times a stray NaN would still be NaN.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_blocks: int,
        block_size: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (num_blocks, block_size, 2, num_kv_heads, head_dim)
        self.layers = [_zeros(shape, dtype, device) for _ in range(num_layers)]
        self.block_size = block_size
        self._scratch = self.layers[0][:0]

    def scratch(self, num_blocks: int) -> torch.Tensor:
        """Room to gather that many blocks of one layer, [num_blocks, block_size, 2, Hkv, D]; the next call reuses it."""
        if num_blocks > len(self._scratch):
            room = max(num_blocks, len(self._scratch) * 5 // 4)
            self._scratch = self.layers[0].new_empty(room, *self.layers[0].shape[1:])
        return self._scratch[:num_blocks]

    @property
    def num_bytes(self) -> int:
        """Size of the whole pool."""
        return sum(layer.nbytes for layer in self.layers)

    def apply(self, copies: Sequence[BlockCopy]) -> None:
        """Make the copies that copy-on-write asked for, in all layers."""
        if not copies:
            return
        device = self.layers[0].device
        sources = torch.tensor([copy.source for copy in copies], device=device)
        destinations = torch.tensor([copy.destination for copy in copies], device=device)
        for layer in self.layers:
            kernels.copy_blocks(layer, sources, destinations)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros that cost no memory on a CPU until they are written: numpy asks the system for zeroed pages, torch writes them."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    num_bytes = math.prod(shape) * dtype.itemsize
    return torch.from_numpy(np.zeros(num_bytes, dtype=np.uint8)).view(dtype).view(shape)
