"""Writing new keys and values into the paged cache.

One layer's cache is [num_blocks, block_size, 2, Hkv, D]: a block holds the K and V of `block_size` tokens in one
contiguous piece, so that it can be copied, moved to another tier or sent to another engine as it is.
The slot of a token is block · block_size + offset.
"""

import torch


def kv_store(kv_cache: torch.Tensor, key: torch.Tensor, value: torch.Tensor, slots: torch.Tensor) -> None:
    """Scatter key and value, each [T, Hkv, D], to their slots [T] (int64) of kv_cache [N, B, 2, Hkv, D], in place."""
    by_slot = kv_cache.flatten(0, 1)  # [N·B, 2, Hkv, D]
    by_slot[:, 0].index_copy_(0, slots, key)
    by_slot[:, 1].index_copy_(0, slots, value)


def copy_blocks(kv_cache: torch.Tensor, sources: torch.Tensor, destinations: torch.Tensor) -> None:
    """Copy whole blocks of kv_cache [N, B, 2, Hkv, D] from sources [C] to destinations [C] (int64), in place.

    All sources are read before anything is written.
    """
    kv_cache.index_copy_(0, destinations, kv_cache.index_select(0, sources))
