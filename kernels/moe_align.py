"""Sorting the tokens of a mixture of experts by expert, into blocks for a grouped product (vLLM's moe_align_block_size, 2023).

A router sends each of T tokens to k experts: S = T · k slots, slot s for token s // k. Blocks of B slots with one expert each:

    expert_ids [T = 3, k = 2]   slots of an expert       B = 2, "·" is padding (the value S = 6)
    token 0:  2  0              expert 0:  1  3  5       slots          1 3 │ 5 · │ 2 · │ 0 ·
    token 1:  1  0              expert 1:  2             block_experts   0  │  0  │  1  │  2
    token 2:  3  0  (of E = 3)  expert 2:  0             (3 is another GPU's expert: left out)

The result is as long as it can get, ⌊(S - n) / B⌋ + n blocks for n = min(S, E): n - 1 experts have one slot, and the last has
all others. So its shape doesn't depend on the data, and a CUDA graph can hold it; blocks that nobody fills have expert -1.

Three launches: count the experts of each chunk of slots, find where each expert and chunk begins, write the slots to their
places. Within an expert slots stay in order, so that results repeat bit by bit: no atomics. At few slots it loses to a
sort within one program, by two launches.
"""

from typing import Any, NamedTuple

import torch

from kernels.cost import Cost
from kernels.dispatch import use_triton
from kernels.library import operator
from kernels.spec import KernelConfig, KernelSpec
from kernels.triton_api import jit, tl, triton
from kernels.work import Traffic, Work

MAX_EXPERTS = 512
_CHUNK = 1024


class Alignment(NamedTuple):
    """Slots sorted by expert, padded to blocks."""

    slots: torch.Tensor
    """[P] int32, S where it is padding."""
    block_experts: torch.Tensor
    """[P / B] int32, the expert of each block, -1 for those without a slot."""


def num_blocks(num_slots: int, num_experts: int, block_size: int) -> int:
    """Return how many blocks there are room for."""
    busy = min(num_slots, num_experts)
    return (num_slots - busy) // block_size + busy


def moe_align_reference(
    expert_ids: torch.Tensor, num_experts: int, block_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The picture at the top, an expert after another."""
    num_slots, experts = expert_ids.numel(), expert_ids.flatten()
    room = num_blocks(num_slots, num_experts, block_size)
    slots = torch.full((room, block_size), num_slots, dtype=torch.int32, device=expert_ids.device)
    block_experts = torch.full((room,), -1, dtype=torch.int32, device=expert_ids.device)
    block = 0
    for expert in range(num_experts):
        mine = (experts == expert).nonzero().flatten()
        for first in range(0, len(mine), block_size):
            piece = mine[first : first + block_size]
            slots[block, : len(piece)] = piece
            block_experts[block] = expert
            block += 1
    return slots.flatten(), block_experts


@jit(varies=("num_slots",))
def _count(ids_ptr, counts_ptr, num_slots, NUM_EXPERTS: tl.constexpr, EXPERTS: tl.constexpr, CHUNK: tl.constexpr):
    """Write how many slots of a chunk go to each expert; EXPERTS is NUM_EXPERTS, or the next power of 2."""
    chunk = tl.program_id(0)
    slots = chunk * CHUNK + tl.arange(0, CHUNK)
    ids = tl.load(ids_ptr + slots, mask=slots < num_slots, other=-1).to(tl.int32)
    is_ours = (ids >= 0) & (ids < NUM_EXPERTS)
    counts = tl.histogram(tl.where(is_ours, ids, 0), EXPERTS, mask=is_ours)
    tl.store(counts_ptr + chunk * EXPERTS + tl.arange(0, EXPERTS), counts)


@jit(varies=("num_chunks", "num_blocks"))
def _begin(
    counts_ptr, block_experts_ptr, num_chunks, num_blocks,
    NUM_EXPERTS: tl.constexpr, EXPERTS: tl.constexpr, BLOCK_SIZE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Replace the count of each chunk and expert by the place of its first slot, and write the expert of each block."""
    experts = tl.arange(0, EXPERTS)
    total = tl.zeros((EXPERTS,), tl.int32)
    for first in range(0, num_chunks, ROWS):
        chunks = first + tl.arange(0, ROWS)[:, None]
        counts = tl.load(counts_ptr + chunks * EXPERTS + experts[None, :], mask=chunks < num_chunks, other=0)
        total += tl.sum(counts, axis=0)
    padded = (total + BLOCK_SIZE - 1) // BLOCK_SIZE * BLOCK_SIZE
    ends = tl.cumsum(padded, axis=0)
    begin = ends - padded
    for first in range(0, num_chunks, ROWS):
        chunks = first + tl.arange(0, ROWS)[:, None]
        places = counts_ptr + chunks * EXPERTS + experts[None, :]
        counts = tl.load(places, mask=chunks < num_chunks, other=0)
        tl.store(places, begin[None, :] + tl.cumsum(counts, axis=0) - counts, mask=chunks < num_chunks)
        begin += tl.sum(counts, axis=0)
    for first in range(0, num_blocks, ROWS):
        blocks = first + tl.arange(0, ROWS)
        expert = tl.sum((ends[None, :] <= blocks[:, None] * BLOCK_SIZE).to(tl.int32), axis=1)  # those that end before
        expert = tl.where(expert < NUM_EXPERTS, expert, -1)
        tl.store(block_experts_ptr + blocks, expert, mask=blocks < num_blocks)


@jit(varies=("num_slots",))
def _scatter(
    ids_ptr, begin_ptr, slots_ptr, num_slots,
    NUM_EXPERTS: tl.constexpr, EXPERTS: tl.constexpr, CHUNK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Write the slots of a chunk to their places, ROWS at a time."""
    chunk = tl.program_id(0)
    experts = tl.arange(0, EXPERTS)
    begin = tl.load(begin_ptr + chunk * EXPERTS + experts)
    for first in range(0, CHUNK, ROWS):
        slots = chunk * CHUNK + first + tl.arange(0, ROWS)
        ids = tl.load(ids_ptr + slots, mask=slots < num_slots, other=-1).to(tl.int32)
        is_of = (ids[:, None] == experts[None, :]).to(tl.int32)  # [ROWS, EXPERTS]
        places = tl.sum(is_of * (begin[None, :] + tl.cumsum(is_of, axis=0) - is_of), axis=1)
        tl.store(slots_ptr + places, slots, mask=(ids >= 0) & (ids < NUM_EXPERTS))
        begin += tl.sum(is_of, axis=0)


def _fake(expert_ids: torch.Tensor, num_experts: int, block_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    room = num_blocks(expert_ids.numel(), num_experts, block_size)
    slots = expert_ids.new_empty(room * block_size, dtype=torch.int32)
    return slots, expert_ids.new_empty(room, dtype=torch.int32)


@operator(_fake)
def _moe_align(expert_ids: torch.Tensor, num_experts: int, block_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    if not use_triton(expert_ids):
        return moe_align_reference(expert_ids, num_experts, block_size)
    num_slots, device = expert_ids.numel(), expert_ids.device
    room = num_blocks(num_slots, num_experts, block_size)
    slots = torch.full((room * block_size,), num_slots, dtype=torch.int32, device=device)
    block_experts = torch.empty((room,), dtype=torch.int32, device=device)
    if not num_slots:
        return slots, block_experts
    expert_ids, num_chunks = expert_ids.contiguous(), triton.cdiv(num_slots, _CHUNK)
    sizes = {"NUM_EXPERTS": num_experts, "EXPERTS": max(triton.next_power_of_2(num_experts), 16)}
    counts = torch.empty((num_chunks, sizes["EXPERTS"]), dtype=torch.int32, device=device)
    _count[(num_chunks,)](expert_ids, counts, num_slots, **sizes, CHUNK=_CHUNK, num_warps=4)
    _begin[(1,)](counts, block_experts, num_chunks, room, **sizes, BLOCK_SIZE=block_size, **_ROWS.blocks, num_warps=8)
    _scatter[(num_chunks,)](expert_ids, counts, slots, num_slots, **sizes, CHUNK=_CHUNK, **_ROWS.blocks, num_warps=8)
    return slots, block_experts


def moe_align(expert_ids: torch.Tensor, num_experts: int, block_size: int) -> Alignment:
    """Sort the slots of expert_ids [T, k], int32 or int64, by expert and pad each expert's to blocks of block_size.

    Ids outside of 0 … num_experts - 1 are left out. Raises ValueError for other dtypes and more than 512 experts.
    """
    if expert_ids.dim() != 2 or expert_ids.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"expert_ids is {expert_ids.dtype} {list(expert_ids.shape)}; it must be int32 or int64 [T, k]")
    if not 1 <= num_experts <= MAX_EXPERTS or block_size < 1:
        raise ValueError(
            f"there are {num_experts} experts and blocks of {block_size}; there must be 1 to {MAX_EXPERTS} and 1 at least"
        )
    return Alignment(*_moe_align(expert_ids, num_experts, block_size))


def moe_align_cost(num_slots: int, num_experts: int, block_size: int) -> Cost:
    """Read the ids (int64) twice, fill and write the slots; an operation a slot."""
    room = num_blocks(num_slots, num_experts, block_size)
    return Cost(flops=num_slots, num_bytes=16 * num_slots + 4 * room * block_size + 4 * num_slots + 4 * room)


_ROWS = KernelConfig({"ROWS": 32}, 8, 1)


def _specs() -> tuple[KernelSpec, ...]:
    sizes = {"NUM_EXPERTS": 128, "EXPERTS": 128}  # Qwen3-MoE
    count: dict[str, Any] = {"ids_ptr": "*i64", "counts_ptr": "*i32", "num_slots": "i32"}
    begin = {"counts_ptr": "*i32", "block_experts_ptr": "*i32", "num_chunks": "i32", "num_blocks": "i32"}
    scatter = {"ids_ptr": "*i64", "begin_ptr": "*i32", "slots_ptr": "*i32", "num_slots": "i32"}
    rows = (_ROWS, KernelConfig({"ROWS": 16}, 8, 1), KernelConfig({"ROWS": 64}, 8, 1))
    chunks = tuple(KernelConfig({"CHUNK": _CHUNK}, warps, 1) for warps in (4, 8))
    tokens, top_k, num_experts, block_size = 4096, 8, 128, 64
    num_slots, shape = tokens * top_k, f"{tokens:,} tokens, {top_k} of {num_experts} experts, blocks of {block_size}"
    num_chunks, room = -(-num_slots // _CHUNK), num_blocks(num_slots, num_experts, block_size)
    table = num_chunks * num_experts * 4
    counted, begun, scattered = (
        Cost(num_slots, 8 * num_slots + table), Cost(2 * table // 4, 2 * table + 4 * room),
        Cost(num_slots, 12 * num_slots + table),
    )  # fmt: skip

    def count_traffic(_: KernelConfig) -> Traffic:
        return Traffic(num_chunks, *counted)

    def begin_traffic(config: KernelConfig) -> Traffic:  # a single program: first the sums, then the places
        turns = -(-num_chunks // config.blocks["ROWS"])
        return Traffic(1, begun.flops + room * num_experts, begun.num_bytes + table, 2 * turns)

    def scatter_traffic(config: KernelConfig) -> Traffic:  # it compares each slot with each expert
        flops = 4 * num_slots * num_experts
        return Traffic(num_chunks, flops, scattered.num_bytes, 1 + _CHUNK // config.blocks["ROWS"])

    count_work, begin_work, scatter_work = (
        Work(shape, counted, count_traffic), Work(shape, begun, begin_traffic), Work(shape, scattered, scatter_traffic)
    )  # fmt: skip
    in_blocks, in_chunks = {**sizes, "BLOCK_SIZE": block_size}, {**sizes, "CHUNK": _CHUNK}
    return (
        KernelSpec("moe_count", _count, count, sizes, chunks, ("ids_ptr", "counts_ptr"), work=count_work),
        KernelSpec("moe_begin", _begin, begin, in_blocks, rows, ("counts_ptr", "block_experts_ptr"), work=begin_work),
        KernelSpec(
            "moe_scatter", _scatter, scatter, in_chunks, rows, ("ids_ptr", "begin_ptr", "slots_ptr"), work=scatter_work
        ),
    )


SPECS = _specs()
