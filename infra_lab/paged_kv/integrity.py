"""A brute-force audit: recount from the block tables what the manager keeps as running counts."""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import NoReturn

from infra_lab.errors import InvariantError
from infra_lab.paged_kv.free_list import FreeList
from infra_lab.paged_kv.hashing import extend_block_hashes
from infra_lab.paged_kv.prefix_index import PrefixIndex
from infra_lab.paged_kv.sequence import KVSequence


def fail(message: str) -> NoReturn:
    """Raise InvariantError: the bookkeeping contradicts itself, as the message says."""
    raise InvariantError(f"paged KV bookkeeping is inconsistent: {message}")


def check_references(ref_counts: Sequence[int], sequences: Collection[KVSequence]) -> None:
    """Raise InvariantError unless every block's count is the number of tables that it stands in."""
    recount = Counter(block for seq in sequences for block in seq.block_table)
    strangers = [block for block in recount if not 0 <= block < len(ref_counts)]
    if strangers:
        fail(f"block tables name {sorted(strangers)}, but the blocks are 0 to {len(ref_counts) - 1}")
    for block, ref_count in enumerate(ref_counts):
        if ref_count != recount[block]:
            fail(f"block {block} has ref_count {ref_count}, but stands in {recount[block]} block tables")


def check_free_list(free: FreeList, index: PrefixIndex, ref_counts: Sequence[int]) -> None:
    """Raise InvariantError unless each block is either used, empty or cached, and the cached ones can be found."""
    times_free = Counter([*free.empty, *free.cached])
    for block, ref_count in enumerate(ref_counts):
        if times_free[block] != (ref_count == 0):
            fail(f"block {block} has ref_count {ref_count} and is {times_free[block]} times in the free list")
    for block in free.empty:
        if index.held_tokens[block]:
            fail(f"block {block} counts as empty, but is registered in the prefix cache")
    for block in free.cached:
        if not index.held_tokens[block]:
            fail(f"block {block} waits for eviction as a cached one, but is not registered in the prefix cache")


def check_sequence(seq: KVSequence, index: PrefixIndex, block_size: int) -> None:
    """Raise InvariantError unless one sequence's table, capacity and hashes fit together and fit its tokens."""
    table, num_committed = seq.block_table, seq.num_committed_blocks
    if len(set(table)) != len(table):
        fail(f"a block stands twice in one table: {table}")
    if not 0 <= seq.capacity <= len(table) * block_size:
        fail(f"capacity is {seq.capacity} tokens with {len(table)} blocks of {block_size}")
    if not 0 <= num_committed <= min(len(table), len(seq.token_ids) // block_size):
        fail(f"{num_committed} blocks committed, of {len(table)} in the table and {len(seq.token_ids)} tokens")
    fresh = KVSequence(seq.token_ids, seq.cache_salt)
    extend_block_hashes(fresh, block_size, len(seq.block_hashes))
    if seq.block_hashes != fresh.block_hashes[: len(seq.block_hashes)]:
        fail(f"the hashes of {len(seq.block_hashes)} blocks are not those of the sequence's tokens and salt")
    for i in range(num_committed):
        if index.held_tokens[table[i]] and not index.is_of(table[i], seq, i):
            fail(f"block {table[i]} is registered under another prefix than that of table entry {i} it stands at")


def check_all(
    free: FreeList,
    index: PrefixIndex,
    ref_counts: Sequence[int],
    block_size: int,
    sequences: Iterable[KVSequence],
) -> None:
    """Run every check of this file; `sequences` are all those that may hold blocks. Raises InvariantError."""
    sequences = list(sequences)
    check_references(ref_counts, sequences)
    check_free_list(free, index, ref_counts)
    index.check(ref_counts, list(free.cached))
    for seq in sequences:
        check_sequence(seq, index, block_size)
