"""The block manager: paged KV memory with sharing, copy-on-write and prefix reuse (PagedAttention, Kwon 2023).

KV memory is cut into blocks of `block_size` tokens, as an operating system cuts memory into pages. A sequence's table
names its blocks in order; they may lie anywhere, and two sequences with a common prefix may name the same ones:

    tokens           0 .. 15     16 .. 31    32 .. 47    48 .. 54      55 tokens / 16 = 3 full blocks + 7
                   ┌───────────┬───────────┬───────────┬───────────┐
    A.block_table  │     0     │     1     │     2     │     3     │
                   └─────┼─────┴─────┼─────┴───────────┴───────────┘
    pool             0 (ref 2)   1 (ref 2)   2 (ref 1)   3 (ref 1)   4 (ref 1)   5 (cached)   6 (free) …
                   ┌─────┼─────┬─────┼─────┬───────────┐
    B.block_table  │     0     │     1     │     4     │                38 tokens / 16 = 2 full blocks + 6
                   └───────────┴───────────┴───────────┘
                    the same first 32 tokens

A block's life:

              grow (empty ones first)                      free, last reference, never registered
      FREE ─────────────────────────────▶ USED ────────────────────────────────────────────────▶ FREE
                                          │  ▲
           free, last reference,          │  │ open: a later sequence has the same prefix
           registered by commit           ▼  │
                                         CACHED ── grow, when no FREE one is left: evicted, ──▶ USED (other contents)
                                                   least recently used first

With a radix tree a prefix may be found that ends inside a block. That block stands in the table until `grow` makes room for
the rest, and a copy of it then takes its place:

    tokens           0 .. 15     16 .. 20                  open: 21 tokens found; block 1 holds 16 .. 31 of another prompt
    C.block_table  │     0     │     1     │
                                     │ copy                grow: slots 5 to 15 of the copy are C's to write
                   │     0     │     7     │     8     │

This is bookkeeping only, without tensors. Whoever owns the KV memory applies the copies that `grow` returns.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Literal, NamedTuple

from infra_lab.errors import ConfigError, InvariantError
from infra_lab.paged_kv import integrity
from infra_lab.paged_kv.free_list import FreeList
from infra_lab.paged_kv.hash_index import HashIndex
from infra_lab.paged_kv.prefix_index import FoundPrefix, PrefixIndex
from infra_lab.paged_kv.radix_tree import RadixTree
from infra_lab.paged_kv.sequence import KVSequence
from infra_lab.paged_kv.snapshot import BlockInfo, BlockState, CacheSnapshot, CacheStats


class BlockCopy(NamedTuple):
    """Copy one whole physical block, in all layers, before anything of the step is computed.

    Apply a step's copies in the order in which they were returned, or read all sources before the first write: when a
    sequence is freed in between, a later copy may write to the block that an earlier one reads. A block is the
    target of two copies only if the first one's owner was freed after its `grow` in the same step; the last counts.
    """

    source: int
    destination: int


_NO_COPIES: tuple[BlockCopy, ...] = ()
_NOTHING_FOUND = FoundPrefix(0, [])

PrefixIndexName = Literal["hash", "radix"]
PREFIX_INDEXES: dict[str, type[HashIndex] | type[RadixTree]] = {"hash": HashIndex, "radix": RadixTree}


def check_prefix_index(name: str) -> None:
    """Raise ConfigError, naming those there are, unless a prefix index has that name."""
    if name not in PREFIX_INDEXES:
        raise ConfigError(f"unknown prefix_index {name!r}; known: {', '.join(PREFIX_INDEXES)}")


class BlockManager:
    """Hands out blocks to sequences and finds the blocks that already hold their prefixes.

    A sequence goes through `open` (once, with an empty table), then `grow` and `commit` around each step that computes
    tokens of it, then (`commit_tail` and) `free`. The manager keeps no reference to it. A call costs O(blocks that it
    touches), however big the pool is.

    prefix_index: how cached prefixes are found: "hash", by whole blocks, or "radix", up to the first other token.

    Raises ConfigError if `num_blocks` or `block_size` is not a positive whole number, or there is no such index.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int = 16,
        *,
        enable_prefix_cache: bool = True,
        prefix_index: PrefixIndexName = "hash",
    ) -> None:
        for name, value in (("num_blocks", num_blocks), ("block_size", block_size)):
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} is {value!r}; it must be a whole number, at least 1")
        check_prefix_index(prefix_index)
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.enable_prefix_cache = enable_prefix_cache
        self.prefix_index: PrefixIndexName = prefix_index
        self.stats = CacheStats()
        self._ref_counts = [0] * num_blocks
        self._free = FreeList(num_blocks)
        self._index: PrefixIndex = PREFIX_INDEXES[prefix_index](num_blocks, block_size)
        self._epoch = 0

    @property
    def num_free_blocks(self) -> int:
        """Blocks that may be handed out now: free ones, and cached ones that no sequence refers to."""
        return len(self._free)

    def match(self, seq: KVSequence) -> int:
        """Return how many leading tokens of `seq` the prefix cache holds: with hashes whole blocks, and never all tokens.

        At least the last token is left to compute, since its logits are what the next token is sampled from. Changes
        nothing but `seq.block_hashes`, which it extends. The answer holds until the next `grow`, which may evict.
        """
        return self._cached_prefix(seq).num_tokens

    def open(self, seq: KVSequence) -> int:
        """Claim the cached prefix that `match` finds, and return its length in tokens.

        The blocks become part of the table and can no longer be evicted. Where the prefix ends inside a block, that block is
        the last of them, and `grow` from there on gives `seq` a block of its own: `capacity` ends before it.

        Raises InvariantError if `seq` holds blocks.
        """
        if seq.block_table:
            raise InvariantError(f"open() of a sequence that holds {len(seq.block_table)} blocks; free() it first")
        num_tokens, blocks = self._cached_prefix(seq)
        ref_counts = self._ref_counts
        for block in blocks:
            if not ref_counts[block]:
                self._free.claim(block)
            ref_counts[block] += 1
        seq.block_table.extend(blocks)
        seq.num_matched_tokens = num_tokens
        seq.num_committed_blocks = num_tokens // self.block_size
        seq.capacity = seq.num_committed_blocks * self.block_size
        seq.cache_epoch = self._epoch
        seq.copied_until = 0
        self.stats.queried_tokens += len(seq.token_ids)
        self.stats.hit_tokens += num_tokens
        return num_tokens

    def cancel_open(self, seq: KVSequence) -> None:
        """Undo an `open` that led to nothing (no room for the rest), as if nobody had asked."""
        self.stats.queried_tokens -= len(seq.token_ids)
        self.stats.hit_tokens -= seq.num_matched_tokens
        self.free(seq)

    def blocks_to_grow(self, seq: KVSequence, num_tokens: int, start: int) -> int:
        """Return how many free blocks `grow` with the same arguments would take."""
        table = seq.block_table
        num_held = len(table)
        num_new = max(-(-num_tokens // self.block_size) - num_held, 0)
        index, offset = divmod(start, self.block_size)
        if index >= num_held:
            return num_new
        return num_new + (self._ref_counts[table[index]] > 1 or self._is_worth_a_copy(table[index], offset, num_new))

    def grow(self, seq: KVSequence, num_tokens: int, start: int) -> tuple[BlockCopy, ...] | None:
        """Make room for writing tokens `start` to `num_tokens`; None, and nothing changed, if blocks are short.

        `start` is where the KV in the cache ends: everything before it is computed, nothing from it on.

            0                             start                num_tokens
            │                               │                    │
            ┌───────────┬───────────┬───────┼───┬───────────┬────┼──────┐
            │  shared   │  shared   │     ?     │   fresh   │   fresh   │ capacity
            └───────────┴───────────┴───────────┴───────────┴───────────┘
             full: never written     the block   from the free list
             again, stay shared      of `start`

        Only the block that `start` falls into can be both shared and about to be written: a fork shares what was
        computed, and that ends there. If another sequence refers to it, it is replaced by a fresh block, and the copy
        to make is returned (copy-on-write). If none does (any more), it is written in place, and forgotten by the prefix
        cache if what is registered of it reaches beyond `start`. A radix tree's block is then copied rather than lost, as
        long as there is one to spare. Sets `seq.capacity` to all that the table has room for.
        """
        num_needed = self.blocks_to_grow(seq, num_tokens, start)
        if num_needed > len(self._free):
            return None
        table = seq.block_table
        copies = _NO_COPIES
        index, offset = divmod(start, self.block_size)
        num_new = max(-(-num_tokens // self.block_size) - len(table), 0)
        if index < len(table):
            copies = self._make_writable(table, index, offset, is_copied=num_needed > num_new)
        elif not table:
            seq.cache_epoch = self._epoch
        if num_new:
            table += self._take(num_new)
        if copies:
            seq.copied_until = start
        seq.capacity = len(table) * self.block_size
        return copies

    def commit(self, seq: KVSequence, num_computed: int) -> None:
        """Register the blocks that are full now that KV of the first `num_computed` tokens is in the cache.

        Call it after the computation, not when it is planned: from here on other sequences read these blocks. A block
        whose contents another one already holds stays private to `seq`; with a radix tree, that other one takes its place.
        Raises InvariantError if the sequence does not hold as many.
        """
        num_full = num_computed // self.block_size
        if num_full > seq.num_committed_blocks and self._may_register(seq):
            if num_full > len(seq.block_table):
                raise InvariantError(
                    f"commit() of {num_computed} tokens by a sequence with {len(seq.block_table)} blocks of {self.block_size}"
                )
            self._register(seq, num_full * self.block_size)
            seq.num_committed_blocks = num_full

    def commit_tail(self, seq: KVSequence, num_computed: int) -> None:
        """Before `free`: commit, and with a radix tree let the partly filled last block be found too.

        A tail that so far is no more than a copy of what is cached is left out: the copy may not have been made yet.
        """
        self.commit(seq, num_computed)
        has_tail = num_computed % self.block_size > 0 and num_computed > seq.copied_until
        if has_tail and self._index.finds_heads and self._may_register(seq):
            self._register(seq, num_computed)

    def fork(self, parent: KVSequence, child: KVSequence, num_tokens: int) -> None:
        """Let `child`, which holds no blocks, share the blocks of the first `num_tokens` tokens of `parent`.

        Those tokens must be computed, and be the first ones of both; call it between two steps. A last block that is
        only partly covered is shared too, and both capacities fall back to its border, so that whoever writes first
        asks `grow` and gets a copy: 9 tokens / 4 = 2 full blocks + 1, so both capacities become 8.

        Raises InvariantError if the child holds blocks, the salts differ, or the parent's blocks are too few.
        """
        num_full, num_partial = divmod(num_tokens, self.block_size)
        num_shared = num_full + (num_partial > 0)
        if child.block_table:
            raise InvariantError(f"fork() into a sequence that holds {len(child.block_table)} blocks; free() it first")
        if parent.cache_salt != child.cache_salt:
            raise InvariantError(f"fork() across cache salts: {parent.cache_salt!r} and {child.cache_salt!r}")
        if num_shared > len(parent.block_table):
            raise InvariantError(
                f"fork() at {num_tokens} tokens = {num_shared} blocks of {self.block_size}; "
                f"the parent holds {len(parent.block_table)}"
            )
        shared = parent.block_table[:num_shared]
        ref_counts = self._ref_counts
        for block in shared:
            ref_counts[block] += 1
        child.block_table.extend(shared)
        child.capacity = num_full * self.block_size
        if num_partial:
            parent.capacity = min(parent.capacity, child.capacity)
        child.block_hashes = parent.block_hashes[:num_full]
        child.num_committed_blocks = min(parent.num_committed_blocks, num_full)
        child.cache_epoch = parent.cache_epoch

    def free(self, seq: KVSequence) -> None:
        """Drop all references of `seq`; a second call does nothing.

        Goes from the end of the table to its start, so that a chain loses its tail before its head: a cached block is
        of no use to anyone once a block before it is gone.
        """
        for block in reversed(seq.block_table):
            self._release(block)
        seq.block_table.clear()
        seq.capacity = 0
        seq.num_committed_blocks = 0

    def reset_prefix_cache(self) -> int:
        """Forget all cached prefixes, for instance after new weights were loaded; returns how many blocks that were.

        Running sequences keep their blocks, which just cannot be found any more. What they fill later is not registered
        either, since it continues a prefix from before the reset, until such a sequence is freed and opened anew.
        """
        self._epoch += 1
        self._free.forget_cached()
        return self._index.clear()

    def check_integrity(self, sequences: Iterable[KVSequence]) -> None:
        """Recount everything against `sequences`, which must be all those that hold blocks; O(pool + tokens).

        Raises InvariantError with the numbers of the first thing that does not add up.
        """
        integrity.check_all(self._free, self._index, self._ref_counts, self.block_size, sequences)

    def snapshot(self) -> CacheSnapshot:
        """Return a frozen picture of every block; O(pool)."""

        def info(block: int) -> BlockInfo:
            ref_count, index = self._ref_counts[block], self._index
            unused = BlockState.CACHED if index.held_tokens[block] else BlockState.FREE
            state = BlockState.USED if ref_count else unused
            return BlockInfo(block, state, ref_count, index.block_hash(block), index.token_ids(block))

        blocks = tuple(info(block) for block in range(self.num_blocks))
        return CacheSnapshot(self.block_size, blocks, tuple(self._free.cached), replace(self.stats))

    def _cached_prefix(self, seq: KVSequence) -> FoundPrefix:
        if not self.enable_prefix_cache or not len(self._index):
            return _NOTHING_FOUND
        return self._index.find(seq, max(len(seq.token_ids) - 1, 0))

    def _may_register(self, seq: KVSequence) -> bool:
        return self.enable_prefix_cache and seq.cache_epoch == self._epoch

    def _register(self, seq: KVSequence, num_tokens: int) -> None:
        duplicates, dropped = self._index.add(seq, num_tokens)
        for index, block in duplicates:
            if not self._ref_counts[block]:
                self._free.claim(block)
            self._ref_counts[block] += 1
            self._release(seq.block_table[index])
            seq.block_table[index] = block
        for block in dropped:
            self._empty_if_unused(block)

    def _release(self, block: int) -> None:
        self._ref_counts[block] -= 1
        if self._ref_counts[block]:
            return
        if self._index.held_tokens[block]:
            self._free.put_cached(block)
        else:
            self._free.put_empty(block)

    def _empty_if_unused(self, block: int) -> None:
        """A block that can no longer be found is worth nothing, unless sequences refer to it."""
        if not self._ref_counts[block]:
            self._free.claim(block)
            self._free.put_empty(block)

    def _is_worth_a_copy(self, block: int, offset: int, num_new: int) -> bool:
        """Whether tokens from `offset` on can be found here, in the middle of prefixes, and a block is to spare."""
        index = self._index
        return index.finds_heads and index.held_tokens[block] > offset and len(self._free) > num_new

    def _make_writable(self, table: list[int], index: int, offset: int, *, is_copied: bool) -> tuple[BlockCopy, ...]:
        block = table[index]
        if is_copied:
            (table[index],) = self._take(1)
            self._release(block)
            self.stats.copies += 1
            return (BlockCopy(block, table[index]),)
        if self._index.held_tokens[block] > offset:
            self._forget(block)
        return _NO_COPIES

    def _take(self, num_blocks: int) -> list[int]:
        blocks = self._free.take(num_blocks)
        ref_counts, held_tokens = self._ref_counts, self._index.held_tokens
        for block in blocks:
            ref_counts[block] = 1
        for block in blocks:
            if held_tokens[block]:
                self._forget(block)
                self.stats.evictions += 1
        return blocks

    def _forget(self, block: int) -> None:
        for other in self._index.remove(block):
            self._empty_if_unused(other)
