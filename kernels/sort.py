"""The k largest of each row, sorted, with their indices: the candidates of a beam search, k ≤ 64 of 150,000 logits.

    values[r]  = the k largest of x[r], largest first; of equal ones the lower index first
    x[r, indices[r, i]] = values[r, i]

Sorting all would move each logit dozens of times for 64 that count. Here two kernels share the work:

    row      |  tile 0  |  tile 1  |  tile 2  |        select: a program instance a tile; k candidates of each, in any order
              k of them   k of them   k of them
                     └────────┼────────┘               merge: a program instance a row; sorts what is left
                          k, sorted

Select finds the k-th largest of its tile without moving anything. The bits of a float, negative ones turned over, are an
integer that orders as the float does. The threshold is built bit by bit from the top, and a bit stays 1 if k elements still
reach it: one count over registers for each of 16 bits (bfloat16, float16) or 32 (radix select; Alabi et al. 2012). What is
larger is taken, and of what equals the threshold the first ones.

Merge packs a candidate into 64 bits, order above index, so that ties are settled by the number itself, and keeps the largest
K by bitonic partial sorts (Shanbhag et al. 2018).

It wins over `torch.topk`, which passes over the row in memory several times, and over sorting by far. It loses for a k above
64, for which it is not made, and at a row of a few hundred elements, where one launch would do.
"""

import torch

from kernels.cost import Cost
from kernels.dispatch import use_triton
from kernels.library import operator
from kernels.rows import as_rows
from kernels.spec import KernelConfig, KernelSpec
from kernels.triton_api import jit, tl, triton
from kernels.work import Traffic, Work, programs_work

MAX_K = 64
MERGE_BLOCK = 2048
SELECT_CONFIGS = tuple(
    KernelConfig({"BLOCK": block}, warps, 1) for block, warps in ((4096, 8), (2048, 4), (4096, 4), (8192, 8))
)
BITS = {torch.float32: 32, torch.bfloat16: 16, torch.float16: 16}


def top_k_reference(x: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and indices [..., k] of the k largest of x [..., W], by torch: a stable sort keeps equal ones in their order."""
    values, indices = torch.sort(x, dim=-1, descending=True, stable=True)
    return values[..., :k].contiguous(), indices[..., :k].contiguous()


@jit
def _ordered(x, BITS: tl.constexpr):
    """Return the floats x as uint32 that order as they do, all above 0; -0 is made +0."""
    SIGN: tl.constexpr = 1 << (BITS - 1)
    bits = x.to(tl.uint16 if BITS == 16 else tl.uint32, bitcast=True).to(tl.uint32)
    bits = tl.where(bits == SIGN, 0, bits).to(tl.uint32)
    # Of two negative numbers the one with larger bits is smaller: turn them all. Positive ones go above.
    return bits ^ tl.where(bits >= SIGN, 2 * SIGN - 1, SIGN).to(tl.uint32)


@jit(varies=("k",))
def _select(x_ptr, candidates_ptr, num_columns, x_stride, k, BITS: tl.constexpr, BLOCK: tl.constexpr):
    tiles_per_row = tl.cdiv(num_columns, BLOCK)
    row = (tl.program_id(0) // tiles_per_row).to(tl.int64)
    columns = tl.program_id(0) % tiles_per_row * BLOCK + tl.arange(0, BLOCK)
    inside = columns < num_columns
    x = tl.load(x_ptr + row * x_stride + columns, mask=inside, other=0.0)
    keys = tl.where(inside, _ordered(x, BITS), 0).to(tl.uint32)
    threshold = tl.full([], 0, tl.uint32)
    for i in range(BITS):
        higher = threshold | (tl.full([], 1, tl.uint32) << (BITS - 1 - i))
        reached = tl.sum((keys >= higher).to(tl.int32), axis=0)
        threshold = tl.where(reached >= k, higher, threshold)
    above, equal = (keys > threshold).to(tl.int32), (keys == threshold).to(tl.int32)
    ranks = tl.cumsum(above + (equal << 16), axis=0)  # both counts in one scan: fewer than 64, and at most BLOCK
    place = tl.where(above == 1, ranks & 0xFFFF, tl.sum(above, axis=0) + (ranks >> 16)) - 1
    taken = (above == 1) | ((equal == 1) & (place < k))
    tl.store(candidates_ptr + tl.program_id(0).to(tl.int64) * k + place, columns, mask=taken)


@jit(varies=("num_candidates", "k"))
def _merge(
    x_ptr, candidates_ptr, values_ptr, indices_ptr, num_columns, num_candidates, x_stride, k,
    BITS: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * x_stride
    best = tl.full([K], -0x8000000000000000, tl.int64)  # smallest first
    for start in range(0, num_candidates, BLOCK):
        places = start + tl.arange(0, BLOCK)
        listed = places < num_candidates
        columns = tl.load(candidates_ptr + row * num_candidates + places, mask=listed, other=0)
        inside = listed & (columns < num_columns)  # a short last tile lists columns beyond the end
        x = tl.load(x_ptr + columns, mask=inside, other=0.0)
        order = tl.where(inside, _ordered(x, BITS), 0).to(tl.int64) - (1 << (BITS - 1))
        packed = (order << 32) | (0x7FFFFFFF - columns).to(tl.int64)
        top = tl.topk(tl.where(inside, packed, -0x8000000000000000), K)  # largest first
        # Two lists sorted in opposite ways: the larger of each pair are the K largest of both.
        best = tl.sort(tl.maximum(best, top))
    columns = 0x7FFFFFFF - (best & 0x7FFFFFFF)
    rank = K - 1 - tl.arange(0, K)
    values = tl.load(x_ptr + columns, mask=rank < k)
    tl.store(values_ptr + row * k + rank, values, mask=rank < k)
    tl.store(indices_ptr + row * k + rank, columns, mask=rank < k)


def _fake(x: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    shape = [*x.shape[:-1], k]
    return x.new_empty(shape), x.new_empty(shape, dtype=torch.int64)


@operator(_fake)
def top_k(x: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the k largest of each row of x [..., W], largest first, equal ones by index: values and indices (int64) [..., k].

    x: float32, bfloat16 or float16, infinities allowed; where NaN comes is not defined. Raises ValueError for another dtype,
    and for a k outside of 1 to min(W, 64).
    """
    if x.dim() == 0 or x.dtype not in BITS:
        raise ValueError(f"x is {list(x.shape)} of {x.dtype}; it must be [..., W] of float32, bfloat16 or float16")
    if not 1 <= k <= min(x.shape[-1], MAX_K):
        raise ValueError(f"k is {k}; with rows of {x.shape[-1]} it must be 1 to {min(x.shape[-1], MAX_K)}")
    if not use_triton(x):
        return top_k_reference(x, k)
    rows = as_rows(x)
    num_rows, num_columns = rows.shape
    values = torch.empty([*x.shape[:-1], k], dtype=x.dtype, device=x.device)
    indices = torch.empty([*x.shape[:-1], k], dtype=torch.int64, device=x.device)
    if num_rows:
        config = SELECT_CONFIGS[0]
        num_tiles = triton.cdiv(num_columns, config.blocks["BLOCK"])
        candidates = torch.empty([num_rows, num_tiles * k], dtype=torch.int32, device=x.device)
        _select[(num_rows * num_tiles,)](
            rows, candidates, num_columns, rows.stride(0), k,
            BITS=BITS[x.dtype], **config.blocks, num_warps=config.num_warps,
        )  # fmt: skip
        config = merge_config(num_tiles * k, k)
        _merge[(num_rows,)](
            rows, candidates, values, indices, num_columns, num_tiles * k, rows.stride(0), k, BITS=BITS[x.dtype],
            **config.blocks, num_warps=config.num_warps,
        )  # fmt: skip
    return values, indices


def merge_config(num_candidates: int, k: int) -> KernelConfig:
    """Return the launch of the second kernel: as many candidates at once as there are, up to 2,048."""
    K = max(triton.next_power_of_2(k), 2)
    block = max(min(triton.next_power_of_2(num_candidates), MERGE_BLOCK), 2 * K)
    return KernelConfig({"K": K, "BLOCK": block}, num_warps=min(max(block // 256, 1), 8), num_stages=1)


def top_k_cost(num_rows: int, num_columns: int, k: int, dtype_bytes: int) -> Cost:
    """Read x once; a comparison and an addition for each bit of each element; the candidates stay in the cache."""
    elements = num_rows * num_columns
    return Cost(
        flops=2 * 8 * dtype_bytes * elements, num_bytes=elements * dtype_bytes + num_rows * k * (dtype_bytes + 8)
    )


def _specs() -> tuple[KernelSpec, ...]:
    select = {"x_ptr": "*bf16", "candidates_ptr": "*i32", "num_columns": "i32", "x_stride": "i32", "k": "i32"}
    merge = {"x_ptr": "*bf16", "candidates_ptr": "*i32", "values_ptr": "*bf16", "indices_ptr": "*i64"}
    merge |= {"num_columns": "i32", "num_candidates": "i32", "x_stride": "i32", "k": "i32"}
    merges = tuple(KernelConfig({"K": MAX_K, "BLOCK": MERGE_BLOCK}, warps, 1) for warps in (8, 4, 16))
    rows, vocabulary, listed = 256, 151_936, 38 * MAX_K  # candidates of a row, 64 of each of its 38 tiles

    def selection(dtype_bytes: int) -> Work:
        cost = top_k_cost(rows, vocabulary, MAX_K, dtype_bytes)
        shape = f"{MAX_K} of {rows} × {vocabulary:,}, {'bf16' if dtype_bytes == 2 else 'fp32'}"
        return programs_work(shape, cost, lambda config: rows * -(-vocabulary // config.blocks["BLOCK"]))

    merge_cost = Cost(
        flops=rows * listed * 21, num_bytes=rows * (listed * (4 + 2) + MAX_K * (2 + 8))
    )  # log₂² of 64 / 2

    def merge_traffic(config: KernelConfig) -> Traffic:
        if config.blocks["K"] < MAX_K:
            raise ValueError(f"K = {config.blocks['K']} keeps fewer than the {MAX_K} largest")
        turns = 2 * -(-listed // config.blocks["BLOCK"])  # candidates, then what they point at
        return Traffic(rows, merge_cost.flops, merge_cost.num_bytes, turns)

    merged = Work(f"{MAX_K} of {rows} × {listed:,} candidates, bf16", merge_cost, merge_traffic)
    fp32 = {**select, "x_ptr": "*fp32"}
    select_names, merge_names = tuple(select), tuple(merge)
    return (
        KernelSpec(
            "top_k_select", _select, select, {"BITS": 16}, SELECT_CONFIGS, select_names, work=selection(2)
        ),
        KernelSpec(
            "top_k_select_fp32", _select, fp32, {"BITS": 32}, SELECT_CONFIGS, select_names, work=selection(4)
        ),
        KernelSpec("top_k_merge", _merge, merge, {"BITS": 16}, merges, merge_names, work=merged),
    )  # fmt: skip


SPECS = _specs()
