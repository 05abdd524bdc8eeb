"""Attention for decode: one query token a sequence, keys split over the machine (flash-decoding; Dao et al. 2023).

    out = softmax(q · Kᵀ · scale) · V          over the paged cache (PagedAttention; Kwon et al. 2023)

Nothing is computed here that would keep a GPU busy: every key is read once and used for the query heads of its group. All
that counts is that reads are in flight everywhere. A program instance owns one sequence, one KV head and one split of the
keys:

    keys of a sequence   |  split 0  |  split 1  |  split 2  |      each: its own softmax, out and log-sum-exp
                               ╲          │          ╱
                                merge by log-sum-exp                (`merge`), only where there is more than one

The query heads that share the KV head (GQA) are rows of one product, padded to the 16 that tensor cores take, so no key
is read twice. The number of splits follows from the batch, the heads and the longest context that may come, never from
what lies on the device: a captured CUDA graph stays right while contexts grow. Each sequence's own length is cut into
that many equal splits.

It loses on lengths that differ much in a large batch (a sequence is not split when the batch alone fills the machine, and
the longest one finishes last), on a single query head a KV head (15 of 16 rows are padding; still bound by memory), and
against a kernel that all sequences with one prefix share (cascade attention), which reads the prefix once.
"""

from functools import lru_cache
from typing import Any

import torch

from kernels.attention_keys import Keys, check_log_sum_exp, check_metadata
from kernels.attention_tile import LOG2_E, attend_reference, attend_tile, finish
from kernels.attention_traffic import KEY_NAMES, decode_traffic
from kernels.cost import Cost
from kernels.device import device_limits
from kernels.dispatch import use_triton
from kernels.flash_attention import flash_attention_cost
from kernels.library import operator
from kernels.merge import launch_merge
from kernels.spec import KernelConfig, KernelSpec
from kernels.triton_api import jit, tl, triton
from kernels.tuned import Tunable, bucket
from kernels.work import Work

RESIDENT = 4
"""Program instances that a multiprocessor has room for (by its registers), in the first config."""
MIN_SPLIT_TOKENS = 256
"""Shorter splits cost more in starting and merging than they gain."""
MAX_SPLITS = 128


def paged_decode_reference(
    query: torch.Tensor, keys: Keys, key_lens: torch.Tensor, block_tables: torch.Tensor, scale: float, window: int,
    log_sum_exp: torch.Tensor | None,
) -> torch.Tensor:  # fmt: skip
    """Attend one sequence after the other, by torch."""
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    for i, (length, table) in enumerate(zip(key_lens.tolist(), block_tables, strict=True)):
        key, value = keys.rows(keys.places(table, length))
        attended = attend_reference(query[i : i + 1], key, value, scale, causal=True, window=window)
        out[i] = attended.out[0]
        if log_sum_exp is not None:
            log_sum_exp[i] = attended.log_sum_exp[0]
    return out


@jit(varies=("table_ptr", "key_lens_ptr", "table_stride"))
def _paged_decode(
    q_ptr, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, table_ptr, key_lens_ptr, out_ptr, lse_ptr,
    q_token_stride, q_head_stride, k_page_stride, k_token_stride, k_head_stride, v_page_stride, v_token_stride, v_head_stride,
    scale_page_stride, scale_token_stride, table_stride, log2_scale, window,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, PAGE: tl.constexpr, WINDOWED: tl.constexpr,
    COMPUTE: tl.constexpr, PRECISION: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    kv_head = tl.program_id(0)  # neighbours read neighbouring heads of the same tokens
    sequence = tl.program_id(1)
    split, num_splits = tl.program_id(2), tl.num_programs(2)
    num_keys = tl.load(key_lens_ptr + sequence)
    first_key = tl.maximum(num_keys - window, 0) if WINDOWED else 0
    first_tile = first_key // BLOCK_N
    tiles_per_split = tl.cdiv(tl.cdiv(num_keys, BLOCK_N) - first_tile, num_splits)
    begin = (first_tile + split * tiles_per_split) * BLOCK_N
    end = tl.minimum(begin + tiles_per_split * BLOCK_N, num_keys)

    k_ptr += kv_head.to(tl.int64) * k_head_stride
    v_ptr += kv_head.to(tl.int64) * v_head_stride
    if k_scale_ptr is not None:
        k_scale_ptr += kv_head
        v_scale_ptr += kv_head
    table_ptr += sequence.to(tl.int64) * table_stride
    heads = tl.arange(0, BLOCK_G)
    columns = tl.arange(0, BLOCK_D)
    real = (heads < GROUP)[:, None] & (columns < HEAD_DIM)[None, :]
    q_ptr += sequence.to(tl.int64) * q_token_stride + kv_head.to(tl.int64) * GROUP * q_head_stride
    query = tl.load(q_ptr + heads[:, None] * q_head_stride + columns[None, :], mask=real, other=0.0).to(
        COMPUTE
    )  # [G, D]

    acc = tl.zeros([BLOCK_G, BLOCK_D], tl.float32)
    total = tl.zeros([BLOCK_G], tl.float32)
    peak = tl.full([BLOCK_G], float("-inf"), tl.float32)
    low = tl.zeros([BLOCK_G], tl.int32) + first_key
    high = tl.zeros([BLOCK_G], tl.int32) + num_keys
    for start in tl.range(begin, end, BLOCK_N):  # always masked: what the mask costs hides behind the reads
        acc, total, peak = attend_tile(
            query, acc, total, peak, low, high, start, num_keys, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, table_ptr,
            k_page_stride, k_token_stride, v_page_stride, v_token_stride, scale_page_stride, scale_token_stride, log2_scale,
            PAGE, HEAD_DIM, COMPUTE, PRECISION, True, WINDOWED, BLOCK_N, BLOCK_D,
        )  # fmt: skip

    attended, lse = finish(acc, total, peak)
    head = ((split.to(tl.int64) * tl.num_programs(1) + sequence) * tl.num_programs(0) + kv_head) * GROUP
    places = out_ptr + head * HEAD_DIM + heads[:, None] * HEAD_DIM + columns[None, :]
    tl.store(places, attended.to(out_ptr.dtype.element_ty), mask=real)
    if lse_ptr is not None:
        tl.store(lse_ptr + head + heads, lse, mask=heads < GROUP)


def num_splits(batch: int, num_kv_heads: int, max_key_len: int, multiprocessors: int) -> int:
    """Return into how many parts to cut every sequence's keys: the fewest that keep the machine nearly as busy as any would.

    A wave is what the machine runs at once. With 600 program instances for 528 places, the second wave is nearly empty:
    57 % busy.
    """
    most = max(min(max_key_len // MIN_SPLIT_TOKENS, MAX_SPLITS), 1)
    return _fewest_splits(max(batch * num_kv_heads, 1), most, RESIDENT * multiprocessors)


@lru_cache(maxsize=4096)  # every layer asks
def _fewest_splits(instances: int, most: int, places: int) -> int:
    def busy(splits: int) -> float:
        waves = instances * splits / places
        return waves / -(-instances * splits // places)

    enough = 0.85 * max(busy(splits) for splits in range(1, most + 1))
    return next(splits for splits in range(1, most + 1) if busy(splits) >= enough)


def _fake(query: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return torch.empty_like(query, memory_format=torch.contiguous_format)


@operator(_fake, mutates=("log_sum_exp",))
def paged_decode(
    query: torch.Tensor,
    kv_cache: torch.Tensor,
    key_lens: torch.Tensor,
    block_tables: torch.Tensor,
    max_key_len: int,
    kv_scales: torch.Tensor | None = None,
    log_sum_exp: torch.Tensor | None = None,
    *,
    scale: float | None = None,
    window: int = 0,
) -> torch.Tensor:
    """Attend one query token of each of S sequences to its keys in the paged cache, which already holds the token's own.

    query: [S, Hq, D] in float32, bfloat16 or float16. kv_cache: [N, B, 2, Hkv, D] in that dtype, or int8 or FP8 with
    kv_scales [N, B, 2, Hkv] float32. key_lens: [S] int32; 0 for a row that only pads the batch, which gets 0.
    block_tables: [S, W] int32; entries behind a sequence's last block are not read. max_key_len: the longest that
    key_lens may hold, for which the work is split; a longer one is right, but slow. scale: 1 / sqrt(D) unless given.
    window: see so many keys at most, 0 for all. log_sum_exp: [S, Hq] float32, written if it is given.

    Returns [S, Hq, D] in the dtype of query, contiguous. Raises ValueError for shapes and dtypes that do not match.
    """
    keys = Keys.paged(kv_cache, kv_scales)
    group = keys.group_of(query)
    check_metadata(query.device, key_lens, block_tables)
    check_log_sum_exp(log_sum_exp, query)
    num_sequences, num_heads, head_dim = query.shape
    if key_lens.shape != (num_sequences,) or block_tables.dim() != 2 or len(block_tables) != num_sequences:
        raise ValueError(
            f"key_lens are {list(key_lens.shape)} and block_tables {list(block_tables.shape)}; for {num_sequences} sequences "
            f"they must be [{num_sequences}] and [{num_sequences}, W]"
        )
    scale = head_dim**-0.5 if scale is None else scale
    if scale <= 0 or window < 0:
        raise ValueError(f"scale is {scale} and window {window}; a scale must be positive, and a window not negative")
    if not use_triton(query, *keys.tensors(log_sum_exp)):
        return paged_decode_reference(query, keys, key_lens, block_tables, scale, window, log_sum_exp)
    query = query if query.stride(-1) == 1 else query.contiguous()
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    if not out.numel():
        return out
    num_kv_heads, longest = keys.key.shape[2], min(max_key_len, window) if window else max_key_len
    splits = num_splits(num_sequences, num_kv_heads, longest, device_limits(query.device).multiprocessors)
    outs, lses = out, log_sum_exp
    if splits > 1:
        outs = torch.empty((splits, *query.shape), dtype=torch.float32, device=query.device)
        lses = torch.empty((splits, num_sequences, num_heads), dtype=torch.float32, device=query.device)
    heads = (num_heads, num_kv_heads, head_dim)
    shape = {"batch": bucket(num_sequences), "keys": bucket(longest), "heads": heads, "page": kv_cache.shape[1]}
    kinds = {"dtype": query.dtype, "cache": kv_cache.dtype}
    config = _TUNED.config(query.device, {**shape, **kinds}, lambda: launch_config(query.element_size()))
    _paged_decode[(num_kv_heads, num_sequences, splits)](
        q_ptr=query, table_ptr=block_tables, key_lens_ptr=key_lens, out_ptr=outs, lse_ptr=lses,
        q_token_stride=query.stride(0), q_head_stride=query.stride(1), table_stride=block_tables.stride(0),
        log2_scale=scale * LOG2_E, window=window, GROUP=group, PAGE=kv_cache.shape[1], WINDOWED=window > 0,
        BLOCK_G=max(triton.next_power_of_2(group), 16), **keys.arguments(query), **config.blocks,
        num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip
    if splits > 1 and lses is not None:
        launch_merge(outs, lses, out, log_sum_exp)
    return out


def paged_decode_cost(
    key_lens: list[int], num_heads: int, num_kv_heads: int, head_dim: int, dtype_bytes: int, kv_bytes: int | None = None
) -> Cost:
    """Read all keys and values once; some two operations a byte and query head of the group, far below any GPU's ridge."""
    ones = [1] * len(key_lens)
    return flash_attention_cost(ones, key_lens, num_heads, num_kv_heads, head_dim, dtype_bytes, kv_bytes=kv_bytes)


CONFIGS = tuple(
    KernelConfig({"BLOCK_N": n}, num_warps=warps, num_stages=stages)
    for n, warps, stages in ((64, 4, 3), (64, 4, 2), (32, 4, 4), (128, 4, 2), (128, 8, 2), (64, 8, 3), (32, 2, 4))
)


def launch_config(dtype_bytes: int) -> KernelConfig:
    """Return the tile for a query of so many bytes an element, unless it is tuned: float32 takes twice the room."""
    return KernelConfig({"BLOCK_N": 32}, num_warps=4, num_stages=2) if dtype_bytes == 4 else CONFIGS[0]


_TUNED = Tunable("paged_decode", (_paged_decode,), CONFIGS)


def _work(kv: str) -> Work:
    """64 sequences of 4,096 with the heads of Llama-3-8B, split as they would be on 132 multiprocessors."""
    batch, length, num_heads, num_kv_heads, head_dim = 64, 4096, 32, 8, 128
    kv_bytes = None if kv == "bf16" else 1
    key_bytes = 2 * head_dim * 2 if kv_bytes is None else 2 * head_dim + 8
    splits, group = num_splits(batch, num_kv_heads, length, 132), num_heads // num_kv_heads
    return Work(
        f"{batch} sequences of {length}, {num_heads} / {num_kv_heads} heads of {head_dim}, {KEY_NAMES[kv]}",
        paged_decode_cost([length] * batch, num_heads, num_kv_heads, head_dim, 2, kv_bytes),
        lambda config: decode_traffic(config, batch, length, group, num_kv_heads, head_dim, key_bytes, splits),
        "bf16",
    )


def _specs() -> tuple[KernelSpec, ...]:
    def spec(name: str, kv: str, capability: int = 80) -> KernelSpec:
        pointers = {"q_ptr": "*bf16", "k_ptr": f"*{kv}", "v_ptr": f"*{kv}", "table_ptr": "*i32", "key_lens_ptr": "*i32"}
        pointers |= {"out_ptr": "*fp32", "lse_ptr": "*fp32"}
        constants: dict[str, Any] = {"GROUP": 4, "HEAD_DIM": 128, "PAGE": 16, "WINDOWED": False, "COMPUTE": tl.bfloat16}
        constants |= {"PRECISION": "tf32", "BLOCK_D": 128, "BLOCK_G": 16}
        scales = ("k_scale_ptr", "v_scale_ptr")
        if kv == "bf16":
            constants |= dict.fromkeys(scales)
        else:
            pointers |= dict.fromkeys(scales, "*fp32")
        strides = [f"{x}_{axis}_stride" for x in "kv" for axis in ("page", "token", "head")]
        strides += ["q_token_stride", "q_head_stride"]
        sizes = dict.fromkeys([*strides, "scale_page_stride", "scale_token_stride", "table_stride"], "i32")
        signature = {**pointers, **sizes, "log2_scale": "fp32", "window": "i32"}
        aligned = (*pointers, *strides)
        return KernelSpec(name, _paged_decode, signature, constants, CONFIGS, aligned, True, capability, work=_work(kv))

    return spec("paged_decode", "bf16"), spec("paged_decode_int8", "i8"), spec("paged_decode_fp8", "fp8e4nv", 89)


SPECS = _specs()
