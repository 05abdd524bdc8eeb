"""The inputs of a decode step at addresses that never change: what a captured step reads (see `cuda_graph`).

    row         0    1    2    3    4    5    6    7        five sequences, padded to 8 rows
    token       a    b    c    d    e    0    0    0
    position    17   3    90   41   8    0    0    0
    slot        33   64   …    …    …    -1   -1   -1       no key and value is stored
    keys        18   4    91   42   9    0    0    0        attention sees nothing and returns zeros
    table       ▒▒   ▒    ▒▒▒  ▒▒▒  ▒    .    .    .        never read: it may be an earlier step's

A padding row is an ordinary row of token 0 everywhere else; rows have nothing to do with each other, so nothing comes of it.
"""

from collections.abc import Sequence

import torch

import kernels
from infra_lab.models.transformer import StepInput
from infra_lab.scheduler.plan import Chunk

PADDING_SLOT = -1


class DecodeBuffers:
    """Room for `max_num_seqs` rows on the device, and the same on the host to be copied from.

    `fill` must not be called while an earlier copy is under way: the step that it was for has to be over.
    """

    def __init__(self, *, max_num_seqs: int, max_model_len: int, block_size: int, device: torch.device) -> None:
        self._max_model_len, self._block_size = max_model_len, block_size
        shape = (max_num_seqs, -(-max_model_len // block_size))
        is_cuda = device.type == "cuda"  # a copy from pinned memory does not make the host wait
        self._host_rows = torch.zeros(3, max_num_seqs, dtype=torch.int64, pin_memory=is_cuda)
        self._host_key_lens = torch.zeros(max_num_seqs, dtype=torch.int32, pin_memory=is_cuda)
        self._host_tables = torch.zeros(shape, dtype=torch.int32, pin_memory=is_cuda)
        self._rows = torch.zeros_like(self._host_rows, device=device)  # token ids, positions, slots
        self._rows[2] = PADDING_SLOT
        self._key_lens = torch.zeros_like(self._host_key_lens, device=device)
        self._tables = torch.zeros_like(self._host_tables, device=device)
        self._all_rows = torch.arange(max_num_seqs, device=device)
        self._written: list[list[int]] = [[] for _ in range(max_num_seqs)]

    def fill(self, chunks: Sequence[Chunk]) -> None:
        """Put the one token of each chunk into the first rows, padding into all others, and start the copies."""
        size, count = self._block_size, len(chunks)
        starts = [chunk.start for chunk in chunks]
        tokens = [chunk.request.token_ids[chunk.start] for chunk in chunks]
        slots = [c.request.block_table[c.start // size] * size + c.start % size for c in chunks]
        self._host_rows[:, :count] = torch.tensor([tokens, starts, slots])
        self._host_rows[:2, count:] = 0
        self._host_rows[2, count:] = PADDING_SLOT
        self._host_key_lens[:count] = torch.tensor(starts, dtype=torch.int32) + 1
        self._host_key_lens[count:] = 0
        self._rows.copy_(self._host_rows, non_blocking=True)
        self._key_lens.copy_(self._host_key_lens, non_blocking=True)
        self._fill_tables([chunk.request.block_table for chunk in chunks])

    def _fill_tables(self, tables: Sequence[list[int]]) -> None:
        """Write the rows that are not as they were: at most steps, those of the few sequences that began a block."""
        has_changed = False
        for row, table in enumerate(tables):
            if table != self._written[row]:
                self._written[row] = list(table)
                self._host_tables[row, : len(table)] = torch.tensor(table, dtype=torch.int32)
                has_changed = True
        if has_changed:
            width = max(len(table) for table in tables)
            count = len(tables)
            self._tables[:count, :width].copy_(self._host_tables[:count, :width], non_blocking=True)

    def inputs(self, num_rows: int) -> StepInput:
        """The first rows as a step's input; these are views, so that it is right for every later `fill`.

        How attention splits a context goes by the longest that there may be: it cannot change in a captured step. Splits
        that a short sequence has no keys for end at once, and the merge skips them.
        """
        batch = kernels.PagedBatch(
            num_decodes=num_rows,
            key_lens=self._key_lens[:num_rows],
            block_tables=self._tables[:num_rows],
            query_starts=self._key_lens[:0],
            max_key_len=self._max_model_len,
            max_query_len=0,
        )
        tokens, positions, slots = (row[:num_rows] for row in self._rows)
        return StepInput(tokens, positions, slots, [], self._all_rows[:num_rows], batch)
