"""What one launch of a kernel does with a config: how many programs, what they compute, what they load and store.

`Cost` is the least that any kernel would have to do. A `Traffic` is what this one does: operands that every tile reads again,
multiplications with the zeros that fill up a tile, rows read twice because they don't fit. The difference between the two is
what block sizes are about:

    matmul, 4096³ in bfloat16     read and written at the least    0.1 GB
                                  by tiles of 128 × 128            2.2 GB         each row of A is read by N / BLOCK_N tiles
                                  by tiles of 32 × 32              8.6 GB
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import NamedTuple

from kernels.chips import Unit
from kernels.cost import Cost
from kernels.spec import KernelConfig


class Traffic(NamedTuple):
    """What a launch does."""

    programs: int
    """Pieces that go to one multiprocessor each: program instances, or the tiles that those of a persistent kernel take."""
    flops: int
    """Operations, those on padding too."""
    num_bytes: int
    """That programs load and store, from wherever it comes. What is masked out does not move."""
    turns: float = 1
    """How many times a program waits for loads, one after the other: the turns of its loop, on average."""
    memory_bytes: int = 0
    """That memory moves, if more than `Cost` says: what is read again so late that no cache has it any more."""


@dataclass(frozen=True, slots=True)
class Work:
    """The launch that a kernel is looked at with."""

    shape: str
    """In words: "4096 × 4096 × 4096, bf16"."""
    cost: Cost
    """The least."""
    traffic: Callable[[KernelConfig], Traffic]
    """What it is with a config. Raises ValueError, in a sentence, for one with which the kernel would not be right."""
    unit: Unit = "fp32"
    """Which of a chip's peaks its operations stand under."""


def programs_work(
    shape: str, cost: Cost, programs: Callable[[KernelConfig], int], *, turns: int = 1, again: int = 0
) -> Work:
    """Work that programs share without overlap, but for `again` bytes that each of them reads for itself."""

    def traffic(config: KernelConfig) -> Traffic:
        count = programs(config)
        return Traffic(count, cost.flops, cost.num_bytes + again * (count - 1), turns)

    return Work(shape, cost, traffic)


def rows_work(shape: str, cost: Cost, num_rows: int, num_columns: int, *, again: int = 0) -> Work:
    """Work of programs that hold ROWS rows (1 if no such block) of BLOCK columns in registers, padded with what is masked."""

    def traffic(config: KernelConfig) -> Traffic:
        block, rows = config.blocks["BLOCK"], config.blocks.get("ROWS", 1)
        if block < num_columns:
            raise ValueError(f"a block of {block:,} does not hold a row of {num_columns:,}: the result would be wrong")
        programs = ceil(num_rows / rows)
        flops = cost.flops * programs * rows * block // (num_rows * num_columns)
        return Traffic(programs, flops, cost.num_bytes + again * (programs - 1))

    return Work(shape, cost, traffic)


def chunks_work(shape: str, cost: Cost, num_rows: int, num_columns: int, row_bytes: int, *, passes: int) -> Work:
    """Work of a program a row, which goes over the row's `row_bytes` several times, in chunks of BLOCK columns."""
    num_bytes = cost.num_bytes + (passes - 1) * num_rows * row_bytes

    def traffic(config: KernelConfig) -> Traffic:
        chunks = ceil(num_columns / config.blocks["BLOCK"])
        flops = cost.flops * chunks * config.blocks["BLOCK"] // num_columns
        return Traffic(num_rows, flops, num_bytes, passes * chunks, memory_bytes=num_bytes)

    return Work(shape, cost, traffic)


def product_traffic(
    config: KernelConfig, M: int, N: int, K: int, element_bytes: tuple[int, int, int] = (2, 2, 2), split: int = 1
) -> Traffic:
    """Tiles of C [M, N]: each column of tiles reads all of A [M, K], each row all of B [K, N]; elements of A, B, C in bytes.

    split: into how many parts the sum over K is cut; each part writes its own C.
    """
    block_m, block_n, block_k = (config.blocks[name] for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K"))
    tiles_m, tiles_n, turns = ceil(M / block_m), ceil(N / block_n), ceil(K / split / block_k)
    programs = tiles_m * tiles_n * split
    a, b, c = element_bytes
    num_bytes = a * M * K * tiles_n + b * K * N * tiles_m + c * M * N * split
    return Traffic(programs, 2 * programs * block_m * block_n * turns * block_k, num_bytes, turns)
