"""The memory behind the block manager's numbers: for each layer [num_blocks, block_size, 2, Hkv, D].

In 8 bits each layer has scales besides, [num_blocks, block_size, 2, Hkv] float32 (see `kernels.kv_store`).
"""

import math
from collections.abc import Sequence
from typing import Self

import numpy as np
import torch

import kernels
from infra_lab.models.config import ModelConfig
from infra_lab.paged_kv.block_manager import BlockCopy

QUANTIZED_DTYPES = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
"""The formats of a cache in 8 bits, by name."""


def kv_block_bytes(model: ModelConfig, dtype: torch.dtype, block_size: int) -> int:
    """Bytes that one block takes over all layers of a `KVMemory` of this dtype, the scales of an 8-bit one counted in."""
    token_bytes = model.kv_bytes_per_token(dtype.itemsize)
    if dtype in QUANTIZED_DTYPES.values():
        token_bytes += 2 * model.num_layers * model.num_kv_heads * torch.float32.itemsize
    return token_bytes * block_size


class KVMemory:
    """Keys and values of all layers, addressed by physical block.

    dtype: of what is stored; torch.int8 and torch.float8_e4m3fn are quantized, with one scale a token and head.

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
        self.layers = [_cache(shape, dtype, device) for _ in range(num_layers)]
        self.block_size = block_size
        self._scratch = kernels.cache_parts(self.layers[0])[0][:0]

    @classmethod
    def of_model(
        cls, model: ModelConfig, *, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
    ) -> Self:
        """Return memory for all layers of a model."""
        return cls(
            num_layers=model.num_layers,
            num_blocks=num_blocks,
            block_size=block_size,
            num_kv_heads=model.num_kv_heads,
            head_dim=model.head_dim,
            dtype=dtype,
            device=device,
        )

    def scratch(self, num_blocks: int) -> torch.Tensor:
        """Room to gather that many blocks of one layer, [num_blocks, block_size, 2, Hkv, D]; the next call reuses it."""
        if num_blocks > len(self._scratch):
            room = max(num_blocks, len(self._scratch) * 5 // 4)
            self._scratch = self._scratch.new_empty(room, *self._scratch.shape[1:])
        return self._scratch[:num_blocks]

    @property
    def num_bytes(self) -> int:
        """Size of the whole pool."""
        return sum(part.nbytes for layer in self.layers for part in _pieces(layer))

    def apply(self, copies: Sequence[BlockCopy]) -> None:
        """Make the copies that copy-on-write asked for, in all layers."""
        if not copies:
            return
        device = self._scratch.device
        sources = torch.tensor([copy.source for copy in copies], device=device)
        destinations = torch.tensor([copy.destination for copy in copies], device=device)
        for layer in self.layers:
            for piece in _pieces(layer):
                kernels.copy_blocks(piece, sources, destinations)


def _cache(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> kernels.KVCache:
    values = _zeros(shape, dtype, device)
    if dtype not in QUANTIZED_DTYPES.values():
        return values
    return kernels.QuantizedKV(values, _zeros(shape[:-1], torch.float32, device))


def _pieces(cache: kernels.KVCache) -> list[torch.Tensor]:
    """The tensors behind a layer's cache, as those that whole blocks can be copied in, [N, B, 2, Hkv, D or 1]."""
    if isinstance(cache, torch.Tensor):
        return [cache]
    return [cache.values.view(torch.int8), cache.scales.unsqueeze(-1)]  # neither torch nor Triton moves FP8 everywhere


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros that cost no memory on a CPU until they are written: numpy asks the system for zeroed pages, torch writes them."""
    num_bytes = math.prod(shape) * dtype.itemsize
    if device.type == "cpu":
        zeros = torch.from_numpy(np.zeros(num_bytes, dtype=np.uint8))
    else:
        zeros = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
    return zeros.view(dtype).view(shape)
