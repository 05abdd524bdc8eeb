"""Each class below breaks one rule of the block manager; each line of the table says which check must notice.

memory      the simulated KV memory alone: some sequence reads what is not its own prefix
integrity   check_integrity alone, against the block tables
model       the brute-force model alone: the cache does not hold, or hands out, what it should
"""

import random

import pytest

from infra_lab.course.planted_bugs import KeepsHashOfEvictedBlock, LeaksAReference, WritesToSharedBlocks
from infra_lab.paged_kv.block_manager import BlockCopy, BlockManager
from infra_lab.paged_kv.hashing import extend_block_hashes
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

    def _make_writable(self, table: list[int], index: int) -> Copies:
        return () if self._ref_counts[table[index]] == 1 else super()._make_writable(table, index)


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
    def _cached_prefix(self, seq: KVSequence) -> list[int]:
        num_blocks = len(seq.token_ids) // self.block_size
        extend_block_hashes(seq, self.block_size, num_blocks)
        return self._index.longest_prefix(seq.block_hashes, num_blocks)


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


def drive_often(times: int, manager_class: type[BlockManager], check: str) -> None:
    rng = random.Random(0)
    for _ in range(times):
        drive(rng, 150, manager_class, checks=[check])


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


@pytest.mark.parametrize("check", ["memory", "integrity", "model"])
def test_each_check_alone_finds_nothing_wrong_with_the_manager_itself(check: str) -> None:
    drive_often(20, BlockManager, check)
