"""Writing new keys and values into the paged cache, and copying its blocks.

One layer's cache is [num_blocks, block_size, 2, Hkv, D]: a block holds the K and V of `block_size` tokens in one
contiguous piece, so that it can be copied, moved to another tier or sent to another engine as it is.
The slot of a token is block · block_size + offset.

    slot                    0               1               2         (block_size 2, so slot 2 is in block 1)
    kv_cache          | K  0 | V  0 | K  1 | V  1 | K  2 | V  2 | …
    key, value, slots   token 0 → 2, token 1 → 0, padding → -1

Slots and blocks of -1 are padding and skipped: a CUDA graph is captured for a padded batch, and its rows without a request
must write nowhere.

`kv_store` has a program instance a token, which moves its K and V. It is a copy and costs as much; it loses to the fused
kernel that writes K and V as soon as they are computed, and in a decode of few tokens the launch is all it costs.

`copy_blocks` must read every source before it writes, or the chain 0 → 1, 1 → 2 would put block 0 into block 2. A program
instance therefore owns a slice of every block, and of all the copies at once: none reads what another one writes, and no
scratch memory is needed. It wins up to MAX_COPIES copies; more are done by torch, through scratch memory of their size
and with a look at what is padding, which a CUDA graph cannot hold.
"""

import torch

from kernels.cost import Cost
from kernels.dispatch import use_triton
from kernels.library import operator
from kernels.spec import KernelConfig, KernelSpec
from kernels.triton_api import jit, tl, triton
from kernels.work import programs_work

STORE_CONFIGS = tuple(KernelConfig({}, warps, 1) for warps in (4, 2, 8, 1))
COPY_CONFIGS = tuple(KernelConfig({"BLOCK": block}, warps, 1) for block, warps in ((256, 4), (128, 4), (512, 8)))
MAX_COPIES = 64
"""Slices of 256 elements of so many blocks fill the registers of 4 warps halfway."""


def kv_store_reference(kv_cache: torch.Tensor, key: torch.Tensor, value: torch.Tensor, slots: torch.Tensor) -> None:
    """Scatter by torch. Padding takes a look at the slots, so on a GPU this waits for them."""
    if slots.numel() and int(slots.min()) < 0:
        real = slots >= 0
        key, value, slots = key[real], value[real], slots[real]
    by_slot = kv_cache.flatten(0, 1)  # [N·B, 2, Hkv, D]
    by_slot[:, 0].index_copy_(0, slots, key)
    by_slot[:, 1].index_copy_(0, slots, value)


def copy_blocks_reference(kv_cache: torch.Tensor, sources: torch.Tensor, destinations: torch.Tensor) -> None:
    """Copy by torch, through memory of the size of the copies."""
    real = (sources >= 0) & (destinations >= 0)
    sources, destinations = sources[real], destinations[real]
    kv_cache.index_copy_(0, destinations, kv_cache.index_select(0, sources))


@jit(varies=("slots_ptr",))
def _kv_store(
    kv_cache_ptr, key_ptr, value_ptr, slots_ptr, key_token_stride, key_head_stride, value_token_stride,
    value_head_stride,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_HEADS: tl.constexpr, BLOCK_DIM: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + token).to(tl.int64)
    heads = tl.arange(0, BLOCK_HEADS)[:, None].to(tl.int64)
    lanes = tl.arange(0, BLOCK_DIM)[None, :]
    inside = (heads < HEADS) & (lanes < HEAD_DIM)  # padding is read too: so nothing waits for the slot
    key = tl.load(key_ptr + token * key_token_stride + heads * key_head_stride + lanes, mask=inside)
    value = tl.load(value_ptr + token * value_token_stride + heads * value_head_stride + lanes, mask=inside)
    place = kv_cache_ptr + slot * (2 * HEADS * HEAD_DIM) + heads * HEAD_DIM + lanes
    tl.store(place, key, mask=inside & (slot >= 0))
    tl.store(place + HEADS * HEAD_DIM, value, mask=inside & (slot >= 0))


@jit(varies=("num_copies",))
def _copy_blocks(
    kv_cache_ptr, sources_ptr, destinations_ptr, num_copies, block_elements,
    COPIES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    copies = tl.arange(0, COPIES)[:, None]
    elements = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)[None, :]
    source = tl.load(sources_ptr + copies, mask=copies < num_copies, other=-1).to(tl.int64)
    destination = tl.load(destinations_ptr + copies, mask=copies < num_copies, other=-1).to(tl.int64)
    inside = (source >= 0) & (destination >= 0) & (elements < block_elements)
    values = tl.load(kv_cache_ptr + source * block_elements + elements, mask=inside)
    tl.debug_barrier()  # all threads have read before one of them writes
    tl.store(kv_cache_ptr + destination * block_elements + elements, values, mask=inside)


@operator(lambda kv_cache, key, value, slots: None, mutates=("kv_cache",))
def kv_store(kv_cache: torch.Tensor, key: torch.Tensor, value: torch.Tensor, slots: torch.Tensor) -> None:
    """Scatter key and value, each [T, Hkv, D], to their slots [T] (int64) of kv_cache [N, B, 2, Hkv, D], in place.

    Slots of -1 are padding and skipped; no other slot may occur twice. Key and value may be views with any strides of tokens
    and heads. Raises ValueError for shapes or dtypes that do not match.
    """
    if not use_triton(kv_cache, key, value, slots):
        kv_store_reference(kv_cache, key, value, slots)
        return
    num_tokens = slots.shape[0]
    heads, head_dim = _check_cache(kv_cache)
    wanted = (num_tokens, heads, head_dim)
    if key.shape != wanted or value.shape != wanted or not key.dtype == value.dtype == kv_cache.dtype:
        raise ValueError(
            f"key is {list(key.shape)} of {key.dtype}, value {list(value.shape)} of {value.dtype}; with {num_tokens} slots "
            f"and this cache both must be {list(wanted)} of {kv_cache.dtype}"
        )
    if not key.numel():
        return
    key, value = (part if part.stride(-1) == 1 else part.contiguous() for part in (key, value))
    _kv_store[(num_tokens,)](
        kv_cache, key, value, slots.contiguous(), key.stride(0), key.stride(1), value.stride(0), value.stride(1),
        HEADS=heads, HEAD_DIM=head_dim, BLOCK_HEADS=triton.next_power_of_2(heads),
        BLOCK_DIM=triton.next_power_of_2(head_dim), num_warps=STORE_CONFIGS[0].num_warps,
    )  # fmt: skip


@operator(lambda kv_cache, sources, destinations: None, mutates=("kv_cache",))
def copy_blocks(kv_cache: torch.Tensor, sources: torch.Tensor, destinations: torch.Tensor) -> None:
    """Copy whole blocks of kv_cache [N, B, 2, Hkv, D] from sources [C] to destinations [C] (int64), in place.

    All sources are read before anything is written. A copy with -1 on either side is padding and skipped; no other destination
    may occur twice. Raises ValueError for shapes that do not match.
    """
    if sources.shape != destinations.shape or sources.dim() != 1:
        raise ValueError(
            f"sources are {list(sources.shape)}, destinations {list(destinations.shape)}; both must be [C], block by block"
        )
    num_copies = sources.shape[0]
    if not use_triton(kv_cache, sources, destinations) or num_copies > MAX_COPIES:
        copy_blocks_reference(kv_cache, sources, destinations)
        return
    _check_cache(kv_cache)
    block_elements = kv_cache[:1].numel()
    if not num_copies * block_elements:
        return
    config = COPY_CONFIGS[0]
    _copy_blocks[(triton.cdiv(block_elements, config.blocks["BLOCK"]),)](
        kv_cache, sources.contiguous(), destinations.contiguous(), num_copies, block_elements,
        COPIES=triton.next_power_of_2(num_copies), **config.blocks, num_warps=config.num_warps,
    )  # fmt: skip


def _check_cache(kv_cache: torch.Tensor) -> tuple[int, int]:
    """Return heads and head size."""
    if kv_cache.dim() != 5 or kv_cache.shape[2] != 2 or not kv_cache.is_contiguous():
        raise ValueError(
            f"kv_cache is {list(kv_cache.shape)} with strides {kv_cache.stride()}; it must be [N, B, 2, Hkv, D], contiguous"
        )
    return kv_cache.shape[3], kv_cache.shape[4]


def kv_store_cost(num_tokens: int, num_kv_heads: int, head_dim: int, dtype_bytes: int) -> Cost:
    """Read K and V once, write them once, and read the slots; no arithmetic."""
    elements = 2 * num_tokens * num_kv_heads * head_dim
    return Cost(flops=0, num_bytes=2 * elements * dtype_bytes + 8 * num_tokens)


def copy_blocks_cost(num_copies: int, block_bytes: int) -> Cost:
    """Read and write each block once; no arithmetic."""
    return Cost(flops=0, num_bytes=2 * num_copies * block_bytes + 16 * num_copies)


def _specs() -> tuple[KernelSpec, ...]:
    pointers = {"kv_cache_ptr": "*bf16", "key_ptr": "*bf16", "value_ptr": "*bf16", "slots_ptr": "*i64"}
    strides = ("key_token_stride", "key_head_stride", "value_token_stride", "value_head_stride")
    store = {**pointers, **dict.fromkeys(strides, "i32")}
    shape = {"HEADS": 8, "HEAD_DIM": 128, "BLOCK_HEADS": 8, "BLOCK_DIM": 128}
    copy = {"kv_cache_ptr": "*bf16", "sources_ptr": "*i64", "destinations_ptr": "*i64"}
    copy |= {"num_copies": "i32", "block_elements": "i32"}
    copy_aligned = ("kv_cache_ptr", "sources_ptr", "destinations_ptr", "block_elements")
    tokens, block = 16_384, 2 * 16 * 8 * 128
    stored = programs_work(
        f"{tokens:,} tokens, 8 KV heads of 128, bf16", kv_store_cost(tokens, 8, 128, 2), lambda _: tokens
    )
    copied = programs_work(
        f"{MAX_COPIES} blocks of 16 tokens, 8 KV heads of 128, bf16",
        copy_blocks_cost(MAX_COPIES, 2 * block),
        lambda config: -(-block // config.blocks["BLOCK"]),
        turns=2,
        again=16 * MAX_COPIES,  # the lists of blocks
    )
    return (
        KernelSpec("kv_store", _kv_store, store, shape, STORE_CONFIGS, tuple(store), work=stored),
        KernelSpec("copy_blocks", _copy_blocks, copy, {"COPIES": MAX_COPIES}, COPY_CONFIGS, copy_aligned, work=copied),
    )


SPECS = _specs()
