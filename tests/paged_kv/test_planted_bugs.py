"""Each class below breaks one rule of the block manager; each line of the table says which check must notice.

memory      the simulated KV memory alone: some sequence reads what is not its own prefix
integrity   check_integrity alone, against the block tables
model       the brute-force model alone: the cache does not hold, or hands out, what it should
"""

import random

import pytest

from infra_lab.course.planted_bugs import KeepsHashOfEvictedBlock, LeaksAReference, WritesToSharedBlocks
from infra_lab.paged_kv.block_manager import BlockCopy, BlockManager, PrefixIndexName
from infra_lab.paged_kv.hashing import extend_block_hashes
from infra_lab.paged_kv.prefix_index import FoundPrefix
from infra_lab.paged_kv.sequence import KVSequence
from tests.paged_kv.random_driver import drive

Copies = tuple[BlockCopy, ...]


class DropsAReferenceTwice(BlockManager):
    def free(self, seq: KVSequence) -> None:
        if seq.block_table and self._ref_counts[seq.block_table[0]] > 1:
            self._ref_counts[seq.block_table[0]] -= 1
        super().free(seq)


class ForgetsToCopy(BlockManager):
    """Puts a fresh block into the table, but does not say that the old contents must be copied."""

    def grow(self, seq: KVSequence, num_tokens: int, start: int) -> Copies | None:
        return None if super().grow(seq, num_tokens, start) is None else ()


class LeavesCapacityAfterFork(BlockManager):
    """The child writes to the last block that it shares with its parent, without asking."""

    def fork(self, parent: KVSequence, child: KVSequence, num_tokens: int) -> None:
        super().fork(parent, child, num_tokens)
        child.capacity = len(child.block_table) * self.block_size


class MatchableBeforeComputed(BlockManager):
    def grow(self, seq: KVSequence, num_tokens: int, start: int) -> Copies | None:
        copies = super().grow(seq, num_tokens, start)
        if copies is not None:
            self.commit(seq, num_tokens)
        return copies


class EvictsReferencedBlocks(BlockManager):
    """A hit leaves the blocks in the order of eviction."""

    def open(self, seq: KVSequence) -> int:
        num_tokens = super().open(seq)
        for block in seq.block_table:
            self._free.put_cached(block)
        return num_tokens


class KeepsHashOfReopenedBlock(BlockManager):
    """The last owner of a forked block overwrites contents that others can still find."""

    def _make_writable(self, table: list[int], index: int, offset: int, *, is_copied: bool) -> Copies:
        return super()._make_writable(table, index, offset, is_copied=True) if is_copied else ()


class EvictsHeadFirst(BlockManager):
    def free(self, seq: KVSequence) -> None:
        seq.block_table.reverse()
        super().free(seq)


class EvictsBeforeUsingEmptyBlocks(BlockManager):
    def _take(self, num_blocks: int) -> list[int]:
        for block in list(self._free.cached)[:1]:
            self._free.claim(block)
            self._free.put_empty(block)
        return super()._take(num_blocks)


class MatchesTheLastToken(BlockManager):
    def _cached_prefix(self, seq: KVSequence) -> FoundPrefix:
        return self._index.find(seq, len(seq.token_ids))


class IgnoresTheSalt(BlockManager):
    def match(self, seq: KVSequence) -> int:
        extend_block_hashes(
            unsalted := KVSequence(seq.token_ids), self.block_size, len(seq.token_ids) // self.block_size
        )
        seq.block_hashes = unsalted.block_hashes
        return super().match(seq)


class HashesBlocksUnchained(BlockManager):
    """Names a block by its own tokens, as if its keys and values did not depend on those before."""

    def match(self, seq: KVSequence) -> int:
        self._hash(seq)
        return super().match(seq)

    def commit(self, seq: KVSequence, num_computed: int) -> None:
        self._hash(seq)
        super().commit(seq, num_computed)

    def _hash(self, seq: KVSequence) -> None:
        size = self.block_size
        seq.block_hashes.clear()
        for end in range(size, len(seq.token_ids) + 1, size):
            extend_block_hashes(alone := KVSequence(seq.token_ids[end - size : end], seq.cache_salt), size, 1)
            seq.block_hashes += alone.block_hashes


class RegistersAcrossReset(BlockManager):
    """A sequence from before a reset puts its next blocks, which depend on old KV, into the new cache."""

    def commit(self, seq: KVSequence, num_computed: int) -> None:
        seq.cache_epoch = self._epoch
        super().commit(seq, num_computed)


class GrowsHalfway(BlockManager):
    """Takes what there is, then finds that it is not enough."""

    def grow(self, seq: KVSequence, num_tokens: int, start: int) -> Copies | None:
        copies = super().grow(seq, num_tokens, start)
        if copies is None and self.num_free_blocks:
            seq.block_table += self._take(1)
        return copies


# ---- with a radix tree ----


class OverwritesCachedHeads(BlockManager):
    """Goes on inside a cached block in place, and leaves it registered."""

    def _is_worth_a_copy(self, block: int, offset: int, num_new: int) -> bool:
        return False

    def _forget(self, block: int) -> None:
        if not self._ref_counts[block] or not self._index.finds_heads:
            super()._forget(block)


class CountsNoCopyOfACachedBlock(BlockManager):
    """Says that growing takes no block for the copy, and takes one."""

    def blocks_to_grow(self, seq: KVSequence, num_tokens: int, start: int) -> int:
        return max(-(-num_tokens // self.block_size) - len(seq.block_table), 0)

    def _make_writable(self, table: list[int], index: int, offset: int, *, is_copied: bool) -> Copies:
        num_free = self.num_free_blocks
        is_worth_it = self._ref_counts[table[index]] > 1 or self._is_worth_a_copy(table[index], offset, 0)
        return super()._make_writable(table, index, offset, is_copied=is_worth_it and num_free > 0)


class LosesTheCopiedBlock(BlockManager):
    """Loses a cached block when its copy is made, instead of keeping it findable."""

    def _make_writable(self, table: list[int], index: int, offset: int, *, is_copied: bool) -> Copies:
        if is_copied and self._ref_counts[table[index]] == 1:
            self._index.remove(table[index])
        return super()._make_writable(table, index, offset, is_copied=is_copied)


class RegistersCopiesBeforeTheyAreMade(BlockManager):
    def commit_tail(self, seq: KVSequence, num_computed: int) -> None:
        seq.copied_until = 0
        super().commit_tail(seq, num_computed)


class ForgetsTails(BlockManager):
    def commit_tail(self, seq: KVSequence, num_computed: int) -> None:
        self.commit(seq, num_computed)


class RegistersTooLongATail(BlockManager):
    """Takes the newest token, which has no KV yet, for one that has."""

    def commit_tail(self, seq: KVSequence, num_computed: int) -> None:
        super().commit_tail(seq, max(num_computed, min(num_computed + 1, len(seq.token_ids), seq.capacity)))


class KeepsDuplicates(BlockManager):
    def _register(self, seq: KVSequence, num_tokens: int) -> None:
        table = list(seq.block_table)
        super()._register(seq, num_tokens)
        for block, kept in zip(seq.block_table, table, strict=True):
            self._ref_counts[block] -= 1
            self._ref_counts[kept] += 1
        seq.block_table[:] = table


class LetsCapacityReachIntoTheLastBlock(BlockManager):
    """The sequence writes into the cached block in which its prefix ends, without asking."""

    def open(self, seq: KVSequence) -> int:
        num_tokens = super().open(seq)
        seq.capacity = len(seq.block_table) * self.block_size
        return num_tokens


class OneTreeForAllSalts(BlockManager):
    def __init__(self, *args: int, **settings: PrefixIndexName) -> None:
        super().__init__(*args, **settings)
        find, add = self._index.find, self._index.add
        self._index.find = lambda seq, max_tokens: find(self._unsalted(seq), max_tokens)
        self._index.add = lambda seq, num_tokens: add(self._unsalted(seq), num_tokens)

    def _unsalted(self, seq: KVSequence) -> KVSequence:
        twin = KVSequence(seq.token_ids)
        twin.block_table, twin.num_committed_blocks = seq.block_table, seq.num_committed_blocks
        return twin


def drive_often(
    times: int, manager_class: type[BlockManager], check: str, prefix_index: PrefixIndexName = "hash"
) -> None:
    rng = random.Random(0)
    for _ in range(times):
        drive(rng, 150, manager_class, [check], prefix_index)


@pytest.mark.parametrize(
    ("manager_class", "check", "message"),
    [
        (LeaksAReference, "integrity", "has ref_count ., but stands in . block tables"),
        (DropsAReferenceTwice, "integrity", "has ref_count ., but stands in . block tables"),
        (DropsAReferenceTwice, "memory", "finds in block"),
        (WritesToSharedBlocks, "memory", "finds in block"),
        (WritesToSharedBlocks, "model", "assert .* == .*BlockCopy"),
        (ForgetsToCopy, "memory", "finds in block"),
        (LeavesCapacityAfterFork, "memory", "finds in block"),
        (LeavesCapacityAfterFork, "model", "is about to be written, with . owners"),
        (MatchableBeforeComputed, "memory", "finds in block"),
        (MatchableBeforeComputed, "model", "assert"),
        (EvictsReferencedBlocks, "memory", "finds in block"),
        (EvictsReferencedBlocks, "integrity", "and is 1 times in the free list|has ref_count 1, but stands in"),
        (EvictsReferencedBlocks, "model", "assert"),
        (KeepsHashOfEvictedBlock, "memory", "finds in block"),
        (KeepsHashOfReopenedBlock, "memory", "finds in block"),
        (EvictsHeadFirst, "model", "assert"),
        (EvictsBeforeUsingEmptyBlocks, "model", "assert"),
        (MatchesTheLastToken, "memory", "no token is left to compute"),
        (IgnoresTheSalt, "memory", "finds in block .*'tenant'"),
        (IgnoresTheSalt, "integrity", "are not those of the sequence's tokens and salt"),
        (HashesBlocksUnchained, "memory", "finds in block"),
        (RegistersAcrossReset, "memory", r"finds in block \d+ Slot\(weights_version="),
        (GrowsHalfway, "model", "assert"),
    ],
)  # fmt: skip
def test_random_operations_catch(manager_class: type[BlockManager], check: str, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        drive_often(1000, manager_class, check)


@pytest.mark.parametrize(
    ("manager_class", "check", "message"),
    [
        (LeaksAReference, "integrity", "has ref_count ., but stands in . block tables"),
        (WritesToSharedBlocks, "memory", "finds in block"),
        (ForgetsToCopy, "memory", "finds in block"),
        (LeavesCapacityAfterFork, "memory", "finds in block"),
        (MatchableBeforeComputed, "memory", "finds in block"),
        (EvictsReferencedBlocks, "memory", "finds in block"),
        (KeepsHashOfEvictedBlock, "memory", "finds in block"),
        (EvictsHeadFirst, "integrity", "would be evicted before"),
        (EvictsHeadFirst, "model", "assert"),
        (MatchesTheLastToken, "memory", "no token is left to compute"),
        (RegistersAcrossReset, "memory", r"finds in block|stay registered"),
        (OverwritesCachedHeads, "memory", "finds in block"),
        (OverwritesCachedHeads, "model", "is to be written, and can be found|assert"),
        (CountsNoCopyOfACachedBlock, "model", "assert"),
        (LosesTheCopiedBlock, "model", "assert"),
        (RegistersCopiesBeforeTheyAreMade, "memory", "finds in block"),
        (ForgetsTails, "model", "assert"),
        (RegistersTooLongATail, "memory", "finds in block"),
        (KeepsDuplicates, "integrity", "is in use, and block|under another prefix|times in the free list"),
        (LetsCapacityReachIntoTheLastBlock, "memory", "finds in block"),
        (OneTreeForAllSalts, "memory", "finds in block .*'tenant'"),
        (OneTreeForAllSalts, "model", "assert"),
    ],
)  # fmt: skip
def test_random_operations_catch_it_in_a_radix_tree(
    manager_class: type[BlockManager], check: str, message: str
) -> None:
    with pytest.raises(AssertionError, match=message):
        drive_often(1000, manager_class, check, "radix")


@pytest.mark.parametrize("check", ["memory", "integrity", "model"])
def test_each_check_alone_finds_nothing_wrong_with_the_manager_itself(
    check: str, prefix_index: PrefixIndexName
) -> None:
    drive_often(20, BlockManager, check, prefix_index)
