"""What a radix tree must do, in the plainest way: a list of cached prefixes, and the longest common one by comparison.

No tree: each block is listed with all tokens from the first to the last that it holds. A prefix is found as far as any of them
agrees with it. Blocks before it on its path are listed too, as long as it is.
"""

from collections import Counter
from collections.abc import Sequence

from infra_lab.paged_kv.sequence import KVSequence
from infra_lab.paged_kv.snapshot import BlockInfo
from tests.paged_kv.cache_model import CacheModel, Prefix


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def begins(prefix: Prefix, longer: Prefix) -> bool:
    """Whether one prefix is how another one begins, or is the same."""
    return prefix[0] == longer[0] and prefix[1] == longer[1][: len(prefix[1])]


class RadixModel(CacheModel):
    def __init__(self, num_blocks: int, block_size: int) -> None:
        super().__init__(num_blocks, block_size)
        self.prefix_of: dict[int, Prefix] = {}
        self.copied_at: dict[KVSequence, int] = {}
        self.waits_for_a_copy: set[KVSequence] = set()

    @property
    def registered(self) -> set[int]:
        return set(self.prefix_of)

    def held(self, block: int) -> int:
        return len(self._tokens_in(block))

    def check_contents(self, blocks: Sequence[BlockInfo]) -> None:
        for info in blocks:
            assert info.token_ids == self._tokens_in(info.block), (
                f"block {info.block} holds {self._tokens_in(info.block)}"
            )

    def check_opened(self, seq: KVSequence, num_tokens: int) -> None:
        cached = [tokens for salt, tokens in self.prefix_of.values() if salt == seq.cache_salt]
        longest = max((common_length(seq.token_ids, tokens) for tokens in cached), default=0)
        assert num_tokens == min(longest, len(seq.token_ids) - 1)
        assert len(seq.block_table) == -(-num_tokens // self.block_size)
        for i, block in enumerate(seq.block_table):
            end = min((i + 1) * self.block_size, num_tokens)
            wanted = (seq.cache_salt, tuple(seq.token_ids[:end]))
            assert begins(wanted, self.prefix_of[block]), f"block {block} holds {self.prefix_of[block]}, not {wanted}"
            assert i * self.block_size < len(self.prefix_of[block][1]) <= (i + 1) * self.block_size

    def opened(self, seq: KVSequence, num_tokens: int) -> None:
        super().opened(seq, num_tokens)
        self.copied_at.pop(seq, None)
        if num_tokens % self.block_size:
            self.waits_for_a_copy.add(seq)
            is_tail = self.held(seq.block_table[-1]) == num_tokens % self.block_size
            self.seen["hit of a whole tail" if is_tail else "hit within a block"] += 1

    def is_kept(self, block: int, offset: int, num_new: int, owners: Counter[int]) -> bool:
        num_free = self.num_blocks - sum(number > 0 for number in owners.values())
        return self.held(block) > offset and num_free > num_new

    def grown(self, seq: KVSequence) -> None:
        self.waits_for_a_copy.discard(seq)

    def num_waiting_for_a_copy(self, block: int) -> int:
        return sum(seq.block_table[-1:] == [block] for seq in self.waits_for_a_copy)

    def copied(self, seq: KVSequence, start: int) -> None:
        self.copied_at[seq] = start

    def reopened(self, block: int, offset: int) -> None:
        if self.held(block) > offset:
            self._forget(block)
            self.seen["reopened"] += 1
        elif self.held(block):
            self.seen["tail continued in place"] += 1

    def committed(self, seq: KVSequence, table: list[int], num_computed: int) -> list[int]:
        if seq not in self.num_offered:
            return table
        expected = list(table)
        for i in range(self.num_offered[seq], num_computed // self.block_size):
            prefix = (seq.cache_salt, tuple(seq.token_ids[: (i + 1) * self.block_size]))
            same = [block for block, other in self.prefix_of.items() if other == prefix]
            if same and same[0] != table[i]:
                self.seen["duplicate"] += 1
                expected[i] = same[0]
            elif not same:
                self._add(table[i], prefix)
            self.num_offered[seq] = i + 1
        return expected

    def tail_committed(self, seq: KVSequence, num_computed: int) -> None:
        is_copy = num_computed <= self.copied_at.get(seq, 0)
        if seq not in self.num_offered or not seq.block_table or is_copy or not num_computed % self.block_size:
            return
        prefix = (seq.cache_salt, tuple(seq.token_ids[:num_computed]))
        if not any(begins(prefix, other) for other in self.prefix_of.values()):
            self._add(seq.block_table[num_computed // self.block_size], prefix)
            self.seen["tail"] += 1

    def reset(self, holding: list[KVSequence]) -> None:
        super().reset(holding)
        self.prefix_of.clear()

    def _add(self, block: int, prefix: Prefix) -> None:
        """Register a prefix; a partly filled block that it goes on from holds nothing more of worth."""
        for other, shorter in list(self.prefix_of.items()):
            if len(shorter[1]) % self.block_size and begins(shorter, prefix):
                del self.prefix_of[other]
                self.seen["tail grew" if other == block else "tail replaced"] += 1
        assert block not in self.prefix_of, f"block {block} is registered twice"
        self.prefix_of[block] = prefix

    def _tokens_in(self, block: int) -> tuple[int, ...]:
        if block not in self.prefix_of:
            return ()
        tokens = self.prefix_of[block][1]
        return tokens[(len(tokens) - 1) // self.block_size * self.block_size :]

    def _forget(self, block: int) -> None:
        prefix = self.prefix_of[block]
        self.prefix_of = {other: longer for other, longer in self.prefix_of.items() if not begins(prefix, longer)}
