"""From a plan to tensors: which rows, which positions, which slots, and how rows form groups for attention.

Decodes come first, shortest first, so that those of similar length form one padded group; every prefill chunk is a group
of its own, and so is a decode with proposals to check. All of this is done once a step; the layers only use it.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import torch

import kernels
from infra_lab.models.transformer import StepInput
from infra_lab.scheduler.plan import Chunk, StepPlan

MAX_PADDING = 0.25
"""A decode group may hold this share of padding, in blocks, before the longer sequences get a group of their own ..."""
FREE_PADDING_BLOCKS = 64
"""... but so many blocks of padding cost less than one more group."""

MAX_GROUP_BLOCKS = 1024
"""What a decode group gathers should stay in the processor's cache until it is used, and small in memory."""


class PreparedStep(NamedTuple):
    """The tensors, and which chunks of the plan the sample rows belong to, in order."""

    inputs: StepInput
    sampled_positions: list[int]
    """Indices into `plan.chunks`, one for each sample row; a chunk with proposals has a row for each of them as well."""


Scratch = Callable[[int], torch.Tensor]
"""Gives room for so many blocks, like `KVMemory.scratch`."""


def prepare_step(
    plan: StepPlan,
    *,
    block_size: int,
    dtype: torch.dtype,
    device: torch.device,
    scratch: Scratch | None = None,
    proposed: Mapping[int, Sequence[int]] = MappingProxyType({}),
) -> PreparedStep:
    """Lay out the plan's tokens as the model wants them.

    proposed: by position in the plan, tokens behind the request's own; a chunk may reach into them. The rows sampled after are
    those of a request's last token and of what is behind it.
    """
    decodes = [i for i, chunk in enumerate(plan.chunks) if chunk.num_tokens == 1]
    prefills = [i for i, chunk in enumerate(plan.chunks) if chunk.num_tokens > 1]
    if len(decodes) > 1:
        decodes.sort(key=lambda i: plan.chunks[i].start)
    token_ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    sample_rows: list[int] = []
    sampled_positions: list[int] = []
    for i in decodes + prefills:
        request, start, num_tokens = plan.chunks[i]
        end, table, last = start + num_tokens, request.block_table, len(request.token_ids) - 1
        token_ids += request.token_ids[start:end]
        if end > last + 1:
            token_ids += proposed[i][max(start - last - 1, 0) : end - last - 1]
        positions += range(start, end)
        slots += [table[p // block_size] * block_size + p % block_size for p in range(start, end)]
        for row in range(
            len(token_ids) - min(end - last, num_tokens), len(token_ids)
        ):  # none, if `last` is not reached
            sample_rows.append(row)
            sampled_positions.append(i)
    groups: list[kernels.QueryGroup] = []
    batch = None
    if kernels.launches_on(device):
        batch = _batch([plan.chunks[i] for i in decodes], [plan.chunks[i] for i in prefills], block_size, device)
    else:
        groups = _decode_groups([plan.chunks[i] for i in decodes], block_size, dtype, device)
        row = len(decodes)
        for i in prefills:
            groups.append(_prefill_group(plan.chunks[i], row, block_size, dtype, device))
            row += plan.chunks[i].num_tokens
        if scratch is not None:
            groups = _with_scratch(groups, scratch)
    # One transfer for all: on a GPU four small copies would cost more than the numbers in them.
    lengths = [len(token_ids), len(token_ids), len(token_ids), len(sample_rows)]
    flat = torch.tensor(token_ids + positions + slots + sample_rows, dtype=torch.int64).to(device, non_blocking=True)
    tokens, places, kv_slots, rows = torch.split(flat, lengths)
    return PreparedStep(StepInput(tokens, places, kv_slots, groups, rows, batch), sampled_positions)


def _batch(
    decodes: Sequence[Chunk], prefills: Sequence[Chunk], block_size: int, device: torch.device
) -> kernels.PagedBatch:
    """All sequences' lengths and block tables in one tensor, which is one transfer to the GPU."""
    chunks = [*decodes, *prefills]
    key_lens = [chunk.start + chunk.num_tokens for chunk in chunks]
    width = max((length - 1) // block_size + 1 for length in key_lens)
    flat: list[int] = []
    for chunk in chunks:
        table = chunk.request.block_table[:width]
        flat += [*table, *[0] * (width - len(table))]
    starts = [0]
    for chunk in prefills:
        starts.append(starts[-1] + chunk.num_tokens)
    moved = torch.tensor([*flat, *key_lens, *starts], dtype=torch.int32).to(device, non_blocking=True)
    tables, lens, query_starts = torch.split(moved, [len(flat), len(key_lens), len(starts)])
    return kernels.PagedBatch(
        num_decodes=len(decodes),
        key_lens=lens,
        block_tables=tables.view(len(chunks), width),
        query_starts=query_starts,
        max_key_len=max(key_lens[: len(decodes)], default=0),
        max_query_len=max((chunk.num_tokens for chunk in prefills), default=0),
    )


def _decode_groups(
    decodes: Sequence[Chunk], block_size: int, dtype: torch.dtype, device: torch.device
) -> list[kernels.QueryGroup]:
    """Cut decodes, sorted by length, into groups of little padding."""
    groups: list[kernels.QueryGroup] = []
    num_blocks = [chunk.start // block_size + 1 for chunk in decodes]
    end = len(decodes)
    while end:
        start, padding = end - 1, 0
        while start:
            gathered = num_blocks[end - 1] * (end - start + 1)
            more = padding + num_blocks[end - 1] - num_blocks[start - 1]
            if gathered > MAX_GROUP_BLOCKS or more > max(FREE_PADDING_BLOCKS, MAX_PADDING * gathered):
                break
            start, padding = start - 1, more
        groups.append(_decode_group(decodes[start:end], start, block_size, dtype, device))
        end = start
    return groups


def _decode_group(
    decodes: Sequence[Chunk], row: int, block_size: int, dtype: torch.dtype, device: torch.device
) -> kernels.QueryGroup:
    lengths = [chunk.start + 1 for chunk in decodes]
    key_len = lengths[-1]
    width = (key_len - 1) // block_size + 1
    if len(decodes) == 1:
        blocks = _blocks(decodes[0].request.block_table[:width], device)
        return kernels.QueryGroup(row, 1, 1, key_len, blocks, None, False)
    table: list[int] = []
    for chunk, length in zip(decodes, lengths, strict=True):
        used = chunk.request.block_table[: (length - 1) // block_size + 1]
        table += used
        table += [used[0]] * (width - len(used))  # any block will do: its keys are masked
    mask = None
    if lengths[0] < key_len:
        visible = torch.arange(key_len) < torch.tensor(lengths).unsqueeze(1)  # [B, Tk]
        mask = _additive(visible[:, None, None, :], dtype).to(device)
    return kernels.QueryGroup(row, len(decodes), 1, key_len, torch.tensor(table, device=device), mask, False)


def _prefill_group(
    chunk: Chunk, row: int, block_size: int, dtype: torch.dtype, device: torch.device
) -> kernels.QueryGroup:
    end = chunk.start + chunk.num_tokens
    blocks = _blocks(chunk.request.block_table[: (end - 1) // block_size + 1], device)
    if chunk.start == 0:
        return kernels.QueryGroup(row, 1, chunk.num_tokens, end, blocks, None, True)
    visible = torch.arange(end) <= torch.arange(chunk.start, end).unsqueeze(1)  # [Tq, Tk]
    mask = _additive(visible, dtype).to(device)
    return kernels.QueryGroup(row, 1, chunk.num_tokens, end, blocks, mask, False)


def _with_scratch(groups: list[kernels.QueryGroup], scratch: Scratch) -> list[kernels.QueryGroup]:
    """Give every group that gathers the same room: they take turns."""
    num_blocks = max((len(group.blocks) for group in groups if isinstance(group.blocks, torch.Tensor)), default=0)
    if num_blocks == 0:
        return groups
    room = scratch(max(num_blocks, MAX_GROUP_BLOCKS))  # asked for once, not a little more at every step
    return [
        group._replace(scratch=room[: len(group.blocks)]) if isinstance(group.blocks, torch.Tensor) else group
        for group in groups
    ]


def _blocks(table: list[int], device: torch.device) -> torch.Tensor | slice:
    """One sequence's blocks: a slice where they are consecutive, which spares attention the gather."""
    first = table[0]
    if table == list(range(first, first + len(table))):
        return slice(first, first + len(table))
    return torch.tensor(table, device=device)


def _additive(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, float("-inf"))
