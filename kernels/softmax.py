"""Softmax over the last dimension, for rows of any width.

    y = exp(x - max(x)) / Σ exp(x - max(x))

The maximum keeps the exponential from overflowing; it cancels in the quotient. A row of which all is -inf becomes NaN, as in
torch.

    up to 32,768 columns    a program instance keeps its row (or several short ones) in registers: read once, written once
    beyond                  in chunks, read twice: once for maximum and sum together, once to write

The first reading of the long kernel is the online softmax (Milakov and Gimelshein 2018): when a larger maximum m' turns up, the
sum so far is put right by exp(m - m'). Each position of the chunk keeps a maximum and a sum of its own, and only the end
combines them, so that no chunk waits for all threads to agree.

It wins as soon as there is a row for each multiprocessor: then it is as fast as a copy (the long kernel, as one and a half
copies). It loses with few and long rows: one row of 150,000 logits keeps one multiprocessor busy and 131 idle.
"""

import torch

from kernels.cost import Cost
from kernels.dispatch import use_triton
from kernels.library import operator
from kernels.rows import as_rows
from kernels.spec import KernelConfig, KernelSpec
from kernels.triton_api import jit, tl, triton
from kernels.tuned import Tunable, bucket
from kernels.work import Work, chunks_work, rows_work

MAX_COLUMNS_IN_REGISTERS = 1 << 15
"""32 warps, as many as a block can have, hold 32 float32 of it in each thread; at the next power of two they spill."""
TILE = 2048
"""Short rows share a program instance until it has so many elements."""
CHUNK_CONFIGS = tuple(KernelConfig({"BLOCK": block}, warps, 1) for block, warps in ((4096, 8), (8192, 16), (2048, 4)))


def softmax_reference(x: torch.Tensor) -> torch.Tensor:
    """Softmax of x [..., W] over its last dimension, by torch."""
    return torch.softmax(x, dim=-1).contiguous()


@jit(varies=("num_rows",))
def _softmax(x_ptr, y_ptr, num_rows, num_columns, x_stride, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    columns = tl.arange(0, BLOCK)[None, :]
    inside = (rows < num_rows) & (columns < num_columns)
    x = tl.load(x_ptr + rows * x_stride + columns, mask=inside, other=-float("inf")).to(tl.float32)
    largest = tl.maximum(tl.max(x, axis=1, keep_dims=True), -3.4e38)  # -inf minus -inf would be NaN
    powers = tl.exp(x - largest)
    y = powers / tl.sum(powers, axis=1, keep_dims=True)
    tl.store(y_ptr + rows * num_columns + columns, y.to(y_ptr.dtype.element_ty), mask=inside)


@jit
def _softmax_in_chunks(x_ptr, y_ptr, num_columns, x_stride, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * x_stride
    y_ptr += row * num_columns
    largest = tl.full([BLOCK], -3.4e38, tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, num_columns, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + columns, mask=columns < num_columns, other=-float("inf")).to(tl.float32)
        larger = tl.maximum(largest, x)
        total = total * tl.exp(largest - larger) + tl.exp(x - larger)
        largest = larger
    peak = tl.max(largest, axis=0)
    inverse = 1.0 / tl.sum(total * tl.exp(largest - peak), axis=0)
    for start in range(0, num_columns, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < num_columns
        x = tl.load(x_ptr + columns, mask=inside, other=-float("inf")).to(tl.float32)
        tl.store(y_ptr + columns, (tl.exp(x - peak) * inverse).to(y_ptr.dtype.element_ty), mask=inside)


@operator(lambda x: torch.empty_like(x, memory_format=torch.contiguous_format))
def softmax(x: torch.Tensor) -> torch.Tensor:
    """Softmax of x [..., W], of a floating-point dtype, over its last dimension; computed in float32.

    Returns a contiguous tensor of x's shape and dtype. Raises ValueError for a scalar and for integers.
    """
    if x.dim() == 0 or not x.is_floating_point():
        raise ValueError(f"x is {list(x.shape)} of {x.dtype}; it must be [..., W] of a floating-point dtype")
    if not use_triton(x):
        return softmax_reference(x)
    rows = as_rows(x)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if not x.numel():
        return y
    num_rows, num_columns = rows.shape
    if num_columns > MAX_COLUMNS_IN_REGISTERS:
        shape = {"rows": bucket(num_rows), "columns": num_columns, "dtype": x.dtype}
        config = _CHUNKS_TUNED.config(x.device, shape, lambda: CHUNK_CONFIGS[0])
        _softmax_in_chunks[(num_rows,)](
            rows, y, num_columns, rows.stride(0), **config.blocks, num_warps=config.num_warps
        )
    else:
        fixed = {"BLOCK": triton.next_power_of_2(num_columns)}
        shape = {"rows": bucket(num_rows), "columns": num_columns, "dtype": x.dtype}
        tuned = _SHORT_TUNED if 2 * num_columns <= TILE else _TUNED
        config = tuned.config(x.device, shape, lambda: softmax_config(num_columns), fixed)
        grid = (triton.cdiv(num_rows, config.blocks["ROWS"]),)
        _softmax[grid](
            rows, y, num_rows, num_columns, rows.stride(0), **config.blocks, num_warps=config.num_warps
        )  # fmt: skip
    return y


def softmax_config(num_columns: int) -> KernelConfig:
    """Return the launch for rows that fit into registers: 16 elements a thread, or 32 where that takes over 16 warps."""
    block = triton.next_power_of_2(num_columns)
    rows = max(TILE // block, 1)
    num_warps = min(rows * block // 512, max(16, block // 1024))
    return KernelConfig({"ROWS": rows, "BLOCK": block}, num_warps, num_stages=1)


def softmax_cost(num_rows: int, num_columns: int, dtype_bytes: int) -> Cost:
    """Read x once, write y once; maximum, difference, exponential, sum and quotient. The long kernel reads x once more."""
    elements = num_rows * num_columns
    return Cost(flops=5 * elements, num_bytes=2 * elements * dtype_bytes)


_CONFIGS = tuple(KernelConfig({"ROWS": 1, "BLOCK": 4096}, warps, 1) for warps in (8, 4, 16))
_SHORT_CONFIGS = tuple(
    KernelConfig({"ROWS": rows, "BLOCK": 128}, warps, 1) for rows, warps in ((16, 4), (8, 4), (32, 8))
)
_TUNED = Tunable("softmax", (_softmax,), _CONFIGS)
_SHORT_TUNED = Tunable("softmax_short_rows", (_softmax,), _SHORT_CONFIGS)
_CHUNKS_TUNED = Tunable("softmax_in_chunks", (_softmax_in_chunks,), CHUNK_CONFIGS)


def _specs() -> tuple[KernelSpec, ...]:
    arguments = {"x_ptr": "*bf16", "y_ptr": "*bf16", "num_rows": "i32", "num_columns": "i32", "x_stride": "i32"}
    chunked = {name: kind for name, kind in arguments.items() if name != "num_rows"}
    aligned = tuple(chunked)
    widest = KernelConfig({"ROWS": 1, "BLOCK": MAX_COLUMNS_IN_REGISTERS}, 32, 1)

    def work(num_rows: int, num_columns: int) -> Work:
        shape, cost = f"{num_rows:,} × {num_columns:,}, bf16", softmax_cost(num_rows, num_columns, 2)
        if num_columns > MAX_COLUMNS_IN_REGISTERS:
            return chunks_work(shape, cost, num_rows, num_columns, 2 * num_columns, passes=2)
        return rows_work(shape, cost, num_rows, num_columns)

    widest_work = work(2048, MAX_COLUMNS_IN_REGISTERS)
    return (
        KernelSpec("softmax", _softmax, arguments, {}, _CONFIGS, aligned, work=work(16_384, 4096)),
        KernelSpec("softmax_short_rows", _softmax, arguments, {}, _SHORT_CONFIGS, aligned, work=work(1 << 19, 128)),
        KernelSpec("softmax_widest_rows", _softmax, arguments, {}, (widest,), aligned, work=widest_work),
        KernelSpec(
            "softmax_in_chunks", _softmax_in_chunks, chunked, {}, CHUNK_CONFIGS, aligned, work=work(256, 151_936)
        ),
    )


SPECS = _specs()
