"""Attention for prefill: FlashAttention-2 (Dao 2023) over sequences of any length, dense or paged (Kwon et al. 2023).

    out = softmax(q · Kᵀ · scale + mask) · V          for each sequence, the query being its last tokens

A program instance owns BLOCK_M rows of one sequence and one KV head and walks over its keys (see `attention_tile`). A row
is a query token and one of the query heads that share the KV head (GQA; Ainslie et al. 2023), so a tile of 128 rows is 32
tokens × 4 heads: each key that is loaded serves all of them, and a short chunk still fills the tile.

    keys ──▶  . . . . . . . . . . . .       begin .. full_begin      masked: the window cuts these tiles
    rows      . . ╲ # # # # ╲ . . . .       full_begin .. full_end   no row needs a mask
     │        . . . ╲ # # # # ╲ . . .       full_end .. end          masked: the diagonal, or the last keys
     ▼        . . . . ╲ # # # # ╲ . .       what lies outside is not visited

Tiles that see the most keys start first, so that the last ones to finish are short.

It wins where the scores would not fit into the cache: it moves O(T · D) bytes instead of O(T²). It loses for one query
token a sequence (use `paged_decode`, which splits the keys), with heads that are no power of two (they are padded),
against kernels that overlap softmax and products by warp specialization (FlashAttention-3, 2024), and with quantized
keys, which are widened tile by tile.
"""

import math
from itertools import pairwise
from typing import Any

import torch

from kernels.attention_keys import Keys, check_log_sum_exp, check_metadata
from kernels.attention_tile import LOG2_E, attend_reference, attend_tile, finish
from kernels.attention_traffic import KEY_NAMES, prefill_traffic
from kernels.cost import Cost
from kernels.device import device_limits
from kernels.dispatch import use_triton
from kernels.library import operator
from kernels.spec import KernelConfig, KernelSpec
from kernels.triton_api import jit, tl, triton
from kernels.tuned import Tunable, bucket
from kernels.work import Work


def flash_attention_reference(
    query: torch.Tensor, keys: Keys, query_starts: torch.Tensor, places: list[torch.Tensor], scale: float,
    causal: bool, window: int, log_sum_exp: torch.Tensor | None,
) -> torch.Tensor:  # fmt: skip
    """Attend one sequence after the other, by torch; its keys lie at `places[i]`, page · B + slot."""
    out = torch.zeros_like(query, memory_format=torch.contiguous_format)
    for (first, last), where in zip(pairwise(query_starts.tolist()), places, strict=True):
        attended = attend_reference(query[first:last], *keys.rows(where), scale, causal=causal, window=window)
        out[first:last] = attended.out
        if log_sum_exp is not None:
            log_sum_exp[first:last] = attended.log_sum_exp
    return out


@jit(varies=("table_ptr", "query_starts_ptr", "key_lens_ptr", "table_stride"))
def _flash_attention(
    q_ptr, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, table_ptr, query_starts_ptr, key_lens_ptr, out_ptr, lse_ptr,
    q_token_stride, q_head_stride, k_page_stride, k_token_stride, k_head_stride, v_page_stride, v_token_stride, v_head_stride,
    scale_page_stride, scale_token_stride, table_stride, log2_scale, window,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, PAGE: tl.constexpr, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr,
    COMPUTE: tl.constexpr, PRECISION: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    kv_head = tl.program_id(1)
    sequence = tl.program_id(2)
    first_row = tile * BLOCK_M
    query_start = tl.load(query_starts_ptr + sequence)
    num_queries = tl.load(query_starts_ptr + sequence + 1) - query_start
    if first_row >= num_queries * GROUP:
        return
    if PAGE > 0:
        num_keys = tl.load(key_lens_ptr + sequence)
        first_key = tl.zeros([], tl.int64)
    else:  # then these are cumulative
        first_key = tl.load(key_lens_ptr + sequence).to(tl.int64)
        num_keys = (tl.load(key_lens_ptr + sequence + 1) - first_key).to(tl.int32)
    k_ptr += kv_head.to(tl.int64) * k_head_stride + first_key * k_token_stride
    v_ptr += kv_head.to(tl.int64) * v_head_stride + first_key * v_token_stride
    if k_scale_ptr is not None:
        k_scale_ptr += kv_head + first_key * scale_token_stride
        v_scale_ptr += kv_head + first_key * scale_token_stride
    if PAGE > 0:
        table_ptr += sequence.to(tl.int64) * table_stride

    rows = first_row + tl.arange(0, BLOCK_M)
    columns = tl.arange(0, BLOCK_D)
    tokens, heads = rows // GROUP, rows % GROUP
    first_token, last_token = first_row // GROUP, tl.minimum((first_row + BLOCK_M - 1) // GROUP, num_queries - 1)
    real = (tokens < num_queries)[:, None] & (columns < HEAD_DIM)[None, :]
    # Only the way to the tile needs 64 bits: addresses live as long as the accumulator, and registers are short.
    token_row = (query_start + first_token).to(tl.int64)
    q_ptr += token_row * q_token_stride + kv_head.to(tl.int64) * GROUP * q_head_stride
    query_places = (tokens - first_token) * q_token_stride + heads * q_head_stride
    query = tl.load(q_ptr + query_places[:, None] + columns[None, :], mask=real, other=0.0).to(COMPUTE)  # [M, D]

    before = num_keys - num_queries  # keys that all of the query sees
    high = tl.full([BLOCK_M], 0, tl.int32) + num_keys
    low = tl.full([BLOCK_M], 0, tl.int32)
    begin, full_begin, full_end, end = 0, 0, num_keys // BLOCK_N * BLOCK_N, num_keys
    if CAUSAL:
        high = tl.minimum(before + tokens + 1, num_keys)
        full_end = tl.maximum(before + first_token + 1, 0) // BLOCK_N * BLOCK_N
        end = tl.maximum(before + last_token + 1, 0)
    if WINDOWED:
        low = before + tokens + 1 - window
        begin = tl.maximum(before + first_token + 1 - window, 0) // BLOCK_N * BLOCK_N
        full_begin = tl.cdiv(tl.maximum(before + last_token + 1 - window, 0), BLOCK_N) * BLOCK_N

    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    if WINDOWED:
        for start in tl.range(begin, full_begin, BLOCK_N):
            acc, total, peak = attend_tile(
                query, acc, total, peak, low, high, start, num_keys, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, table_ptr,
                k_page_stride, k_token_stride, v_page_stride, v_token_stride, scale_page_stride, scale_token_stride, log2_scale,
                PAGE, HEAD_DIM, COMPUTE, PRECISION, True, True, BLOCK_N, BLOCK_D,
            )  # fmt: skip
    for start in tl.range(full_begin, full_end, BLOCK_N):
        acc, total, peak = attend_tile(
            query, acc, total, peak, low, high, start, num_keys, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, table_ptr,
            k_page_stride, k_token_stride, v_page_stride, v_token_stride, scale_page_stride, scale_token_stride, log2_scale,
            PAGE, HEAD_DIM, COMPUTE, PRECISION, False, WINDOWED, BLOCK_N, BLOCK_D,
        )  # fmt: skip
    for start in tl.range(tl.maximum(full_begin, full_end), end, BLOCK_N):
        acc, total, peak = attend_tile(
            query, acc, total, peak, low, high, start, num_keys, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, table_ptr,
            k_page_stride, k_token_stride, v_page_stride, v_token_stride, scale_page_stride, scale_token_stride, log2_scale,
            PAGE, HEAD_DIM, COMPUTE, PRECISION, True, WINDOWED, BLOCK_N, BLOCK_D,
        )  # fmt: skip

    attended, lse = finish(acc, total, peak)
    num_heads = tl.num_programs(1) * GROUP
    first_head = token_row * num_heads + kv_head * GROUP
    head_rows = (tokens - first_token) * num_heads + heads
    places = out_ptr + first_head * HEAD_DIM + head_rows[:, None] * HEAD_DIM + columns[None, :]
    tl.store(places, attended.to(out_ptr.dtype.element_ty), mask=real)
    if lse_ptr is not None:
        tl.store(lse_ptr + first_head + head_rows, lse, mask=tokens < num_queries)


def launch_config(num_rows: int, dtype_bytes: int, capability: int, quantized: bool) -> KernelConfig:
    """Return the tile for the longest query of a step, in rows (tokens × heads that share a KV head), unless it is tuned.

    From sm_90 on, products read the keys from shared memory; before, a warp holds the whole tile in registers, and it
    must be small.
    """
    if dtype_bytes == 4:
        return KernelConfig({"BLOCK_M": 16, "BLOCK_N": 32}, num_warps=4, num_stages=2)
    if num_rows <= 16:
        return KernelConfig({"BLOCK_M": 16, "BLOCK_N": 32}, num_warps=4, num_stages=3)
    if num_rows <= 64:
        return KernelConfig({"BLOCK_M": 64, "BLOCK_N": 32}, num_warps=8, num_stages=3)
    if capability >= 90:
        return CONFIGS[1]
    return CONFIGS[7] if quantized else CONFIGS[2]


def _launch(
    query: torch.Tensor, keys: Keys, query_starts: torch.Tensor, key_lens: torch.Tensor, block_tables: torch.Tensor | None,
    max_query_len: int, scale: float | None, causal: bool, window: int, log_sum_exp: torch.Tensor | None,
) -> torch.Tensor:  # fmt: skip
    """Launch for dense keys (key_lens [S + 1], cumulative) or, with block_tables [S, W], paged ones (key_lens [S])."""
    group = keys.group_of(query)
    query = query if query.stride(-1) == 1 else query.contiguous()
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    num_sequences = len(query_starts) - 1
    capability, quantized = device_limits(query.device).capability, keys.key.element_size() == 1
    page, num_rows = 0 if block_tables is None else keys.key.shape[1], max_query_len * group
    shape = {
        "rows": bucket(num_rows),
        "group": group,
        "head_dim": query.shape[2],
        "page": page,
        "window": bucket(window),
    }
    config = _TUNED.config(
        query.device,
        {**shape, "dtype": query.dtype, "keys": keys.key.dtype},
        lambda: launch_config(num_rows, query.element_size(), capability, quantized),
    )
    tiles = triton.cdiv(max_query_len * group, config.blocks["BLOCK_M"])
    if not out.numel() or not num_sequences or not tiles:
        return out
    _flash_attention[(tiles, keys.key.shape[2], num_sequences)](
        q_ptr=query, table_ptr=block_tables, query_starts_ptr=query_starts, key_lens_ptr=key_lens, out_ptr=out,
        lse_ptr=log_sum_exp, q_token_stride=query.stride(0), q_head_stride=query.stride(1),
        table_stride=0 if block_tables is None else block_tables.stride(0),
        log2_scale=(query.shape[2] ** -0.5 if scale is None else scale) * LOG2_E, window=window, GROUP=group,
        PAGE=page, CAUSAL=causal, WINDOWED=window > 0, **keys.arguments(query),
        **config.blocks, num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip
    return out


def _check(
    query: torch.Tensor, keys: Keys, metadata: tuple[torch.Tensor, ...], scale: float | None, causal: bool, window: int,
    log_sum_exp: torch.Tensor | None,
) -> None:  # fmt: skip
    keys.group_of(query)
    check_metadata(query.device, *metadata)
    if (scale is not None and not 0 < scale < math.inf) or window < 0 or (window and not causal):
        raise ValueError(
            f"scale is {scale} and window {window}; they must be positive, and a window is for causal attention"
        )
    check_log_sum_exp(log_sum_exp, query)


def _fake(query: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return torch.empty_like(query, memory_format=torch.contiguous_format)


@operator(_fake, mutates=("log_sum_exp",))
def flash_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_starts: torch.Tensor,
    key_starts: torch.Tensor,
    max_query_len: int,
    key_scales: torch.Tensor | None = None,
    value_scales: torch.Tensor | None = None,
    log_sum_exp: torch.Tensor | None = None,
    *,
    scale: float | None = None,
    causal: bool = True,
    window: int = 0,
) -> torch.Tensor:
    """Attend S sequences to their own keys, all of them flat behind each other.

    query: [T, Hq, D] in float32, bfloat16 or float16. key, value: [Tk, Hkv, D] in that dtype, or int8 or FP8 with
    key_scales and value_scales [Tk, Hkv] float32. query_starts, key_starts: [S + 1] int32, cumulative lengths from 0.
    max_query_len: no query may be longer; what is beyond is not computed. scale: 1 / sqrt(D) unless given. causal: the
    query is the end of its sequence. window: see so many keys at most, 0 for all. log_sum_exp: [T, Hq] float32, written
    if it is given.

    Returns [T, Hq, D] in the dtype of query, contiguous; rows of no sequence hold anything. Raises ValueError for shapes
    and dtypes that do not match.
    """
    keys = Keys.dense(key, value, key_scales, value_scales)
    _check(query, keys, (query_starts, key_starts), scale, causal, window, log_sum_exp)
    if len(query_starts) != len(key_starts) or query_starts.dim() != 1:
        raise ValueError(
            f"query_starts are {list(query_starts.shape)} and key_starts {list(key_starts.shape)}; both must be [S + 1]"
        )
    if not use_triton(query, *keys.tensors(log_sum_exp)):
        starts = key_starts.tolist()
        places = [torch.arange(a, b, device=key.device) for a, b in pairwise(starts)]
        scale = query.shape[2] ** -0.5 if scale is None else scale
        return flash_attention_reference(query, keys, query_starts, places, scale, causal, window, log_sum_exp)
    return _launch(query, keys, query_starts, key_starts, None, max_query_len, scale, causal, window, log_sum_exp)


@operator(_fake, mutates=("log_sum_exp",))
def paged_flash_attention(
    query: torch.Tensor,
    kv_cache: torch.Tensor,
    query_starts: torch.Tensor,
    key_lens: torch.Tensor,
    block_tables: torch.Tensor,
    max_query_len: int,
    kv_scales: torch.Tensor | None = None,
    log_sum_exp: torch.Tensor | None = None,
    *,
    scale: float | None = None,
    causal: bool = True,
    window: int = 0,
) -> torch.Tensor:
    """Attend S sequences to their keys in the paged cache, which already holds those of the query's own tokens.

    kv_cache: [N, B, 2, Hkv, D], with kv_scales [N, B, 2, Hkv] float32 if it is int8 or FP8. key_lens: [S] int32, keys of
    each sequence. block_tables: [S, W] int32; entries behind a sequence's last block are not read, whatever they hold.
    All else, what is returned and what is raised, as for `flash_attention`.
    """
    keys = Keys.paged(kv_cache, kv_scales)
    _check(query, keys, (query_starts, key_lens, block_tables), scale, causal, window, log_sum_exp)
    num_sequences = len(query_starts) - 1
    if key_lens.shape != (num_sequences,) or block_tables.dim() != 2 or len(block_tables) != num_sequences:
        raise ValueError(
            f"key_lens are {list(key_lens.shape)} and block_tables {list(block_tables.shape)}; for {num_sequences} sequences "
            f"they must be [{num_sequences}] and [{num_sequences}, W]"
        )
    if not use_triton(query, *keys.tensors(log_sum_exp)):
        places = [keys.places(table, int(length)) for table, length in zip(block_tables, key_lens, strict=True)]
        scale = query.shape[2] ** -0.5 if scale is None else scale
        return flash_attention_reference(query, keys, query_starts, places, scale, causal, window, log_sum_exp)
    return _launch(query, keys, query_starts, key_lens, block_tables, max_query_len, scale, causal, window, log_sum_exp)


def flash_attention_cost(
    query_lens: list[int],
    key_lens: list[int],
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    dtype_bytes: int,
    *,
    kv_bytes: int | None = None,
    causal: bool = True,
    window: int = 0,
) -> Cost:
    """Two matrix products over the keys that are visible; K and V read once a sequence, q and out once.

    kv_bytes: of an element of quantized keys and values, which add a float32 scale a token and head.
    """
    flops = num_bytes = 0
    per_head = 2 * head_dim * (dtype_bytes if kv_bytes is None else kv_bytes) + (0 if kv_bytes is None else 8)
    for query_len, key_len in zip(query_lens, key_lens, strict=True):
        last_seen = range(key_len - query_len + 1, key_len + 1) if causal else [key_len] * query_len
        visible = [min(max(seen, 0), window or key_len) for seen in last_seen]
        read = min(key_len, window + query_len - 1) if window else key_len
        flops += 4 * sum(visible) * num_heads * head_dim
        num_bytes += 2 * query_len * num_heads * head_dim * dtype_bytes + read * num_kv_heads * per_head
    return Cost(flops, num_bytes)


CONFIGS = tuple(
    KernelConfig({"BLOCK_M": m, "BLOCK_N": n}, num_warps=warps, num_stages=stages)
    for m, n, warps, stages in (
        (128, 32, 8, 2), (128, 64, 8, 3), (128, 32, 8, 3), (64, 64, 8, 2), (128, 128, 8, 2), (64, 64, 4, 3), (16, 64, 4, 3),
        (64, 32, 8, 3),
    )
)  # fmt: skip


_TUNED = Tunable("flash_attention", (_flash_attention,), CONFIGS)


def _work(kv: str, has_window: bool) -> Work:
    """A prompt of 4,096 tokens with the heads of Llama-3-8B."""
    length, num_heads, num_kv_heads, head_dim, window = 4096, 32, 8, 128, 1024 if has_window else 0
    kv_bytes = None if kv == "bf16" else 1
    cost = flash_attention_cost(
        [length], [length], num_heads, num_kv_heads, head_dim, 2, kv_bytes=kv_bytes, window=window
    )
    key_bytes = 2 * head_dim * 2 if kv_bytes is None else 2 * head_dim + 8
    group = num_heads // num_kv_heads
    return Work(
        f"{length} tokens, {num_heads} / {num_kv_heads} heads of {head_dim}, {KEY_NAMES[kv]}, causal"
        f"{', window 1024' * has_window}",
        cost,
        lambda config: prefill_traffic(config, length, group, num_kv_heads, head_dim, key_bytes, window),
        "bf16",
    )


def _specs() -> tuple[KernelSpec, ...]:
    def spec(name: str, page: int, kv: str, window: bool = False, capability: int = 80, first: int = 0) -> KernelSpec:
        pointers = {
            "q_ptr": "*bf16",
            "k_ptr": f"*{kv}",
            "v_ptr": f"*{kv}",
            "query_starts_ptr": "*i32",
            "key_lens_ptr": "*i32",
        }
        pointers |= {"out_ptr": "*bf16", "lse_ptr": "*fp32"}
        constants: dict[str, Any] = {"GROUP": 4, "HEAD_DIM": 128, "PAGE": page, "CAUSAL": True, "WINDOWED": window}
        constants |= {"COMPUTE": tl.bfloat16, "PRECISION": "tf32", "BLOCK_D": 128}
        scaled, optional = ("k_scale_ptr", "v_scale_ptr"), {"table_ptr": "*i32"}
        constants |= {name: None for name in scaled if kv == "bf16"} | {name: None for name in optional if not page}
        pointers |= {name: "*fp32" for name in scaled if kv != "bf16"} | {name: "*i32" for name in optional if page}
        strides = [f"{x}_{axis}_stride" for x in "kv" for axis in ("page", "token", "head")]
        strides += ["q_token_stride", "q_head_stride"]
        others = ["scale_page_stride", "scale_token_stride", "table_stride"]
        sizes = dict.fromkeys([*strides, *others], "i32")
        signature = {**pointers, **sizes, "log2_scale": "fp32", "window": "i32"}
        aligned = (*pointers, *strides)
        configs = (CONFIGS[first], *CONFIGS[:first], *CONFIGS[first + 1 :])
        return KernelSpec(
            name, _flash_attention, signature, constants, configs, aligned, True, capability, work=_work(kv, window)
        )

    # What stands first compiles without spills for all targets. The launcher takes CONFIGS[1] from sm_90 on.
    return (
        spec("flash_attention", 0, "bf16"),
        spec("flash_attention_window", 0, "bf16", window=True, first=2),
        spec("paged_flash_attention", 16, "bf16", first=2),
        spec("paged_flash_attention_int8", 16, "i8", first=7),
        spec("paged_flash_attention_fp8", 16, "fp8e4nv", capability=89, first=2),
    )


SPECS = _specs()
