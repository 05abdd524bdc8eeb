"""Writing new keys and values into the paged cache, and copying its blocks.

One layer's cache is [num_blocks, block_size, 2, Hkv, D]: a block holds the K and V of `block_size` tokens in one
contiguous piece, so that it can be copied, moved to another tier or sent to another engine as it is.
The slot of a token is block · block_size + offset.

    slot                    0               1               2         (block_size 2, so slot 2 is in block 1)
    kv_cache          | K  0 | V  0 | K  1 | V  1 | K  2 | V  2 | …
    key, value, slots   token 0 → 2, token 1 → 0, padding → -1

A cache in 8 bits (int8 or FP8 E4M3) has the same layout and beside it the scales, [num_blocks, block_size, 2, Hkv] float32, one
a token and head of K and one of V; `kv_store` rounds while it stores, exactly as `quantize` does row by row. A token takes
2 · Hkv · (D + 4) bytes instead of 4 · Hkv · D in bfloat16: 53 % for heads of 64, 51.6 % for heads of 128.

Slots and blocks of -1 are padding and skipped: a CUDA graph is captured for a padded batch, and its rows without a request
must write nowhere.

`kv_store` has a program instance a token, which moves its K and V. It is a copy and costs as much; it loses to the fused
kernel that writes K and V as soon as they are computed, and in a decode of few tokens the launch is all it costs.

`copy_blocks` must read every source before it writes, or the chain 0 → 1, 1 → 2 would put block 0 into block 2. A program
instance therefore owns a slice of every block, and of all the copies at once: none reads what another one writes, and no
scratch memory is needed. It wins up to MAX_COPIES copies; more are done by torch, through scratch memory of their size
and with a look at what is padding, which a CUDA graph cannot hold.
"""

from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from kernels.attention_keys import QUANTIZED
from kernels.cost import Cost
from kernels.dispatch import use_triton
from kernels.library import operator
from kernels.quantize import (
    FLOOR,
    FP8_LIMIT,
    INT8_LIMIT,
    quantize_fp8_reference,
    quantize_int8_reference,
    store_quantized,
    storing,
)
from kernels.spec import KernelConfig, KernelSpec
from kernels.triton_api import jit, tl, triton
from kernels.work import programs_work

STORE_CONFIGS = tuple(KernelConfig({}, warps, 1) for warps in (4, 2, 8, 1))
COPY_CONFIGS = tuple(KernelConfig({"BLOCK": block}, warps, 1) for block, warps in ((256, 4), (128, 4), (512, 8)))
MAX_COPIES = 64
"""Slices of 256 elements of so many blocks fill the registers of 4 warps halfway."""


@dataclass(frozen=True, slots=True)
class QuantizedKV:
    """One layer's cache in 8 bits: a key or value is `values · scales`. Its length is the number of blocks."""

    values: torch.Tensor
    """[N, B, 2, Hkv, D] int8 or float8_e4m3fn."""
    scales: torch.Tensor
    """[N, B, 2, Hkv] float32."""

    def __len__(self) -> int:
        return len(self.values)


KVCache: TypeAlias = torch.Tensor | QuantizedKV
"""One layer's: [N, B, 2, Hkv, D] in the dtype of keys and values, or in 8 bits."""


def cache_parts(kv_cache: KVCache) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return values [N, B, 2, Hkv, D] and scales [N, B, 2, Hkv]; the scales are None unless it is quantized."""
    return (kv_cache.values, kv_cache.scales) if isinstance(kv_cache, QuantizedKV) else (kv_cache, None)


def dequantize(values: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return values [..., D] · scales [...], multiplied in float32, in the dtype. Values must not be NaN."""
    scales = scales.unsqueeze(-1)
    if values.dtype == torch.float8_e4m3fn:
        # On a CPU torch widens FP8 one by one. Its bits under a float16's sign, behind one more bit of exponent, are the same
        # number but for the bias, 7 instead of 15; subnormal ones too.
        bits = values.view(torch.int8).to(torch.int16)
        values = (bits & -0x8000 | bits << 7 & 0x3F80).view(torch.float16)
        scales = scales * 2**8
    return values.to(torch.float32).mul_(scales).to(dtype)


def kv_store_reference(
    kv_cache: torch.Tensor, key: torch.Tensor, value: torch.Tensor, slots: torch.Tensor,
    kv_scales: torch.Tensor | None = None,
) -> None:  # fmt: skip
    """Scatter by torch. Padding takes a look at the slots, so on a GPU this waits for them."""
    if slots.numel() and int(slots.min()) < 0:
        real = slots >= 0
        key, value, slots = key[real], value[real], slots[real]
    by_slot = kv_cache.flatten(0, 1)  # [N·B, 2, Hkv, D]
    if kv_scales is None:
        by_slot[:, 0].index_copy_(0, slots, key)
        by_slot[:, 1].index_copy_(0, slots, value)
        return
    quantize = quantize_int8_reference if kv_cache.dtype == torch.int8 else quantize_fp8_reference
    by_slot, scales_by_slot = by_slot.view(torch.int8), kv_scales.flatten(0, 1)  # torch moves no FP8 by index
    for part, x in enumerate((key, value)):
        values, scales = quantize(x)  # [T, Hkv, D], [T, Hkv, 1]
        by_slot[:, part].index_copy_(0, slots, values.view(torch.int8))
        scales_by_slot[:, part].index_copy_(0, slots, scales.squeeze(-1))


def copy_blocks_reference(kv_cache: torch.Tensor, sources: torch.Tensor, destinations: torch.Tensor) -> None:
    """Copy by torch, through memory of the size of the copies."""
    real = (sources >= 0) & (destinations >= 0)
    sources, destinations = sources[real], destinations[real]
    kv_cache.index_copy_(0, destinations, kv_cache.index_select(0, sources))


@jit
def _store_in_8_bits(
    x, place, scale_place, stored, stored_heads, LIMIT: tl.constexpr, KIND: tl.constexpr, FLOOR: tl.constexpr
):
    """Store the heads x [heads, D], zeros beyond each, and the scale of each."""
    x = x.to(tl.float32)
    largest = tl.maximum(tl.max(tl.abs(x), axis=1), FLOOR)[:, None]
    store_quantized(x, tl.div_rn(LIMIT, largest), place, stored, LIMIT, KIND)
    tl.store(scale_place, tl.div_rn(largest, LIMIT), mask=stored_heads)


@jit(varies=("slots_ptr",))
def _kv_store(
    kv_cache_ptr, kv_scales_ptr, key_ptr, value_ptr, slots_ptr, key_token_stride, key_head_stride, value_token_stride,
    value_head_stride,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, LIMIT: tl.constexpr, KIND: tl.constexpr, FLOOR: tl.constexpr,
    BLOCK_HEADS: tl.constexpr, BLOCK_DIM: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + token).to(tl.int64)
    heads = tl.arange(0, BLOCK_HEADS)[:, None].to(tl.int64)
    lanes = tl.arange(0, BLOCK_DIM)[None, :]
    inside = (heads < HEADS) & (lanes < HEAD_DIM)  # padding is read too: so nothing waits for the slot
    key = tl.load(key_ptr + token * key_token_stride + heads * key_head_stride + lanes, mask=inside, other=0.0)
    value = tl.load(value_ptr + token * value_token_stride + heads * value_head_stride + lanes, mask=inside, other=0.0)
    place = kv_cache_ptr + slot * (2 * HEADS * HEAD_DIM) + heads * HEAD_DIM + lanes
    stored = inside & (slot >= 0)
    if kv_scales_ptr is None:
        tl.store(place, key, mask=stored)
        tl.store(place + HEADS * HEAD_DIM, value, mask=stored)
    else:
        scale_place = kv_scales_ptr + slot * (2 * HEADS) + heads
        stored_heads = (heads < HEADS) & (slot >= 0)
        _store_in_8_bits(key, place, scale_place, stored, stored_heads, LIMIT, KIND, FLOOR)
        _store_in_8_bits(value, place + HEADS * HEAD_DIM, scale_place + HEADS, stored, stored_heads, LIMIT, KIND, FLOOR)


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


@operator(lambda kv_cache, key, value, slots, kv_scales=None: None, mutates=("kv_cache", "kv_scales"))
def kv_store(
    kv_cache: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    slots: torch.Tensor,
    kv_scales: torch.Tensor | None = None,
) -> None:
    """Scatter key and value, each [T, Hkv, D], to their slots [T] (int64) of kv_cache [N, B, 2, Hkv, D], in place.

    An int8 or float8_e4m3fn cache needs kv_scales [N, B, 2, Hkv] float32: then keys and values may be of any floating-point
    dtype and are rounded (see `quantize`), and their scales are written to kv_scales; else all are of one dtype.

    Slots of -1 are padding and skipped; no other slot may occur twice. Key and value may be views with any strides of tokens
    and heads. Raises ValueError for shapes or dtypes that do not match.
    """
    _check_scales(kv_cache, kv_scales)
    if not use_triton(kv_cache, key, value, slots, *([] if kv_scales is None else [kv_scales])):
        kv_store_reference(kv_cache, key, value, slots, kv_scales)
        return
    num_tokens = slots.shape[0]
    heads, head_dim = _check_cache(kv_cache)
    wanted, dtype = (num_tokens, heads, head_dim), kv_cache.dtype if kv_scales is None else key.dtype
    if (
        key.shape != wanted
        or value.shape != wanted
        or not key.dtype == value.dtype == dtype
        or not dtype.is_floating_point
    ):
        raise ValueError(
            f"key is {list(key.shape)} of {key.dtype}, value {list(value.shape)} of {value.dtype}; with {num_tokens} slots "
            f"and this cache both must be {list(wanted)} of {dtype if kv_scales is None else 'one floating-point dtype'}"
        )
    if not key.numel():
        return
    key, value = (part if part.stride(-1) == 1 else part.contiguous() for part in (key, value))
    target, limit, kind = (kv_cache, 0.0, "copy") if kv_scales is None else storing(kv_cache)
    _kv_store[(num_tokens,)](
        target, kv_scales, key, value, slots.contiguous(),
        key.stride(0), key.stride(1), value.stride(0), value.stride(1),
        HEADS=heads, HEAD_DIM=head_dim, LIMIT=limit, KIND=kind, FLOOR=FLOOR,
        BLOCK_HEADS=triton.next_power_of_2(heads), BLOCK_DIM=triton.next_power_of_2(head_dim),
        num_warps=STORE_CONFIGS[0].num_warps,
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


def _check_scales(kv_cache: torch.Tensor, kv_scales: torch.Tensor | None) -> None:
    if (kv_scales is not None) != (kv_cache.dtype in QUANTIZED):
        raise ValueError(
            f"kv_cache is {kv_cache.dtype} {'without' if kv_scales is None else 'with'} scales; int8 and float8_e4m3fn have "
            "them, others do not"
        )
    if kv_scales is not None and (
        kv_scales.shape != kv_cache.shape[:4] or kv_scales.dtype != torch.float32 or not kv_scales.is_contiguous()
    ):
        raise ValueError(
            f"kv_scales are {list(kv_scales.shape)} of {kv_scales.dtype} with strides {kv_scales.stride()}; they must be "
            f"{list(kv_cache.shape[:4])} of torch.float32, contiguous"
        )


def kv_store_cost(
    num_tokens: int, num_kv_heads: int, head_dim: int, dtype_bytes: int, *, quantizes: bool = False
) -> Cost:
    """Read K and V of so many bytes an element once, write them once, and read the slots; no arithmetic.

    quantizes: write a byte for each and a scale for each head instead, with six operations an element (`quantize_cost`).
    """
    heads = 2 * num_tokens * num_kv_heads
    elements = heads * head_dim
    if quantizes:
        return Cost(flops=6 * elements, num_bytes=elements * (dtype_bytes + 1) + 4 * heads + 8 * num_tokens)
    return Cost(flops=0, num_bytes=2 * elements * dtype_bytes + 8 * num_tokens)


def copy_blocks_cost(num_copies: int, block_bytes: int) -> Cost:
    """Read and write each block once; no arithmetic."""
    return Cost(flops=0, num_bytes=2 * num_copies * block_bytes + 16 * num_copies)


def _specs() -> tuple[KernelSpec, ...]:
    shape = {"HEADS": 8, "HEAD_DIM": 128, "FLOOR": FLOOR, "BLOCK_HEADS": 8, "BLOCK_DIM": 128}
    strides = ("key_token_stride", "key_head_stride", "value_token_stride", "value_head_stride")
    copy = {"kv_cache_ptr": "*bf16", "sources_ptr": "*i64", "destinations_ptr": "*i64"}
    copy |= {"num_copies": "i32", "block_elements": "i32"}
    copy_aligned = ("kv_cache_ptr", "sources_ptr", "destinations_ptr", "block_elements")
    tokens, block = 16_384, 2 * 16 * 8 * 128

    def store(name: str, cache: str, kind: str, limit: float, min_capability: int = 80) -> KernelSpec:
        quantizes = kind != "copy"
        constants: dict[str, Any] = {**shape, "LIMIT": limit, "KIND": kind}
        pointers = {"kv_cache_ptr": cache}
        if quantizes:
            pointers |= {"kv_scales_ptr": "*fp32"}
        else:
            constants |= {"kv_scales_ptr": None}
        pointers |= {"key_ptr": "*bf16", "value_ptr": "*bf16", "slots_ptr": "*i64"}
        signature = {**pointers, **dict.fromkeys(strides, "i32")}
        stored = programs_work(
            f"{tokens:,} tokens, 8 KV heads of 128, bf16{f' to {kind}' if quantizes else ''}",
            kv_store_cost(tokens, 8, 128, 2, quantizes=quantizes),
            lambda _: tokens,
        )
        return KernelSpec(
            name, _kv_store, signature, constants, STORE_CONFIGS, tuple(signature), min_capability=min_capability,
            work=stored,
        )  # fmt: skip

    copied = programs_work(
        f"{MAX_COPIES} blocks of 16 tokens, 8 KV heads of 128, bf16",
        copy_blocks_cost(MAX_COPIES, 2 * block),
        lambda config: -(-block // config.blocks["BLOCK"]),
        turns=2,
        again=16 * MAX_COPIES,  # the lists of blocks
    )
    return (
        store("kv_store", "*bf16", "copy", 0.0),
        store("kv_store_int8", "*i8", "int8", INT8_LIMIT),
        store("kv_store_fp8", "*fp8e4nv", "fp8", FP8_LIMIT, 89),
        KernelSpec("copy_blocks", _copy_blocks, copy, {"COPIES": MAX_COPIES}, COPY_CONFIGS, copy_aligned, work=copied),
    )


SPECS = _specs()
