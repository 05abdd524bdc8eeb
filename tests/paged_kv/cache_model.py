"""What the prefix cache must do, in the plainest way: a dict from whole prefixes to blocks, a time for each free block.

Nothing here is efficient, and nothing here uses the code under test: no hashes, no reference counts, no linked lists.
"""

from collections import Counter
from collections.abc import Sequence

from infra_lab.paged_kv.sequence import KVSequence
from infra_lab.paged_kv.snapshot import BlockInfo

Prefix = tuple[str, tuple[int, ...]]  # salt, tokens


class CacheModel:
    """Told of every operation, it says what the manager should have done."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.cached: dict[Prefix, int] = {}
        self.freed_at: dict[
            int, tuple[int, int]
        ] = {}  # block -> (when, minus its place in the table): smaller goes first
        self.now = 0
        self.num_offered: dict[KVSequence, int] = {}  # no entry: its KV is older than a reset and may not be registered
        self.seen: Counter[str] = Counter()

    @property
    def registered(self) -> set[int]:
        return set(self.cached.values())

    def held(self, block: int) -> int:
        """How many of a block's tokens can be found."""
        return self.block_size if block in self.cached.values() else 0

    def is_kept(self, block: int, offset: int, num_new: int, owners: Counter[int]) -> bool:
        """Whether a block that only its writer refers to is copied for the sake of what can be found in it."""
        return False

    def copied(self, seq: KVSequence, start: int) -> None:
        """The block of token `start` of a sequence is a copy, once the step is executed."""

    def grown(self, seq: KVSequence) -> None:
        """A sequence has room of its own for what it computes next."""

    def num_waiting_for_a_copy(self, block: int) -> int:
        """How many sequences hold a block only until they grow: others may write behind what they have found there."""
        return 0

    def tail_committed(self, seq: KVSequence, num_computed: int) -> None:
        """Whole blocks only."""

    def check_contents(self, blocks: Sequence[BlockInfo]) -> None:
        assert all(not info.token_ids for info in blocks)

    def check_opened(self, seq: KVSequence, num_tokens: int) -> None:
        expected = self.longest_prefix(seq)
        assert seq.block_table == expected
        assert num_tokens == len(expected) * self.block_size

    def longest_prefix(self, seq: KVSequence) -> list[int]:
        """The blocks that open() must find: short of the last token, and unbroken from the first."""
        blocks: list[int] = []
        for end in range(self.block_size, len(seq.token_ids), self.block_size):
            block = self.cached.get((seq.cache_salt, tuple(seq.token_ids[:end])))
            if block is None:
                break
            blocks.append(block)
        return blocks

    def opened(self, seq: KVSequence, num_tokens: int) -> None:
        self.num_offered[seq] = num_tokens // self.block_size
        self.seen["hit" if num_tokens else "miss"] += 1

    def forked(self, parent: KVSequence, child: KVSequence, num_tokens: int) -> None:
        if parent in self.num_offered:
            self.num_offered[child] = num_tokens // self.block_size
        self.seen["fork, partial block" if num_tokens % self.block_size else "fork, whole blocks"] += 1

    def reopened(self, block: int, offset: int) -> None:
        """A block that is written again holds its registered prefix no longer."""
        del offset
        if block in self.cached.values():
            self._forget(block)
            self.seen["reopened"] += 1

    def taken(self, blocks: list[int], owners: Counter[int]) -> None:
        """Blocks are handed out in this order: any empty one, then cached ones, least recently used first."""
        free = {block for block in range(self.num_blocks) if not owners[block]}
        for block in blocks:
            assert block in free, f"block {block} was handed out with {owners[block]} owners"
            cached = free & self.registered
            if block in cached:
                assert cached == free, f"block {block} was evicted with blocks {free - cached} empty"
                assert block == self.eviction_order(cached)[0], f"block {block} was evicted out of turn"
                self._forget(block)
                self.seen["evicted"] += 1
            free.remove(block)

    def committed(self, seq: KVSequence, table: list[int], num_computed: int) -> list[int]:
        """`table` is the sequence's block table before; returns what it must be now."""
        if seq not in self.num_offered:
            return table
        for i in range(self.num_offered[seq], num_computed // self.block_size):
            prefix = (seq.cache_salt, tuple(seq.token_ids[: (i + 1) * self.block_size]))
            if self.cached.setdefault(prefix, table[i]) != table[i]:
                self.seen["duplicate"] += 1
            self.num_offered[seq] = i + 1
        return table

    def freed(self, table: list[int], owners: Counter[int]) -> None:
        self.now += 1
        self.freed_at |= {block: (self.now, -i) for i, block in enumerate(table) if owners[block] == 1}

    def reset(self, holding: list[KVSequence]) -> None:
        self.cached.clear()
        for seq in holding:
            self.num_offered.pop(seq, None)
        self.seen["reset"] += 1

    def eviction_order(self, blocks: set[int]) -> list[int]:
        return sorted(blocks, key=self.freed_at.__getitem__)

    def _forget(self, block: int) -> None:
        self.cached = {prefix: holder for prefix, holder in self.cached.items() if holder != block}
