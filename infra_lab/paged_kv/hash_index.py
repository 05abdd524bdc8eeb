"""Prefixes by hash: one chained hash a full block (vLLM, Kwon 2023). Finds whole blocks, with one look-up each.

At most one block a hash, at most one hash a block. A block whose contents another one already holds stays private to its
sequence. A block may be forgotten while those behind it are still registered: they cannot be found until it is computed again.
"""

from collections.abc import Mapping, Sequence

from infra_lab.paged_kv.hashing import extend_block_hashes
from infra_lab.paged_kv.integrity import fail
from infra_lab.paged_kv.prefix_index import NOTHING_ELSE, FoundPrefix, Registration
from infra_lab.paged_kv.sequence import KVSequence


class HashIndex:
    """A `PrefixIndex`: a one-to-one map between chained block hashes and physical blocks."""

    finds_heads = False

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self._block_size = block_size
        self._block_of: dict[bytes, int] = {}
        self._hash_of: list[bytes | None] = [None] * num_blocks
        self._held_tokens = [0] * num_blocks

    def __len__(self) -> int:
        return len(self._block_of)

    @property
    def block_of(self) -> Mapping[bytes, int]:
        """The block that holds a hash."""
        return self._block_of

    @property
    def held_tokens(self) -> Sequence[int]:
        """All tokens of a block, or none."""
        return self._held_tokens

    def find(self, seq: KVSequence, max_tokens: int) -> FoundPrefix:
        """Return the blocks of the longest unbroken run of known hashes."""
        num_blocks = max_tokens // self._block_size
        extend_block_hashes(seq, self._block_size, num_blocks)
        hashes, block_of = seq.block_hashes, self._block_of
        found: list[int] = []
        for i in range(num_blocks):
            block = block_of.get(hashes[i])
            if block is None:  # what follows a hole cannot be used, even where it is cached
                break
            found.append(block)
        return FoundPrefix(len(found) * self._block_size, found)

    def add(self, seq: KVSequence, num_tokens: int) -> Registration:
        """Register the full blocks; where another one already holds the hash, that one stays."""
        num_full = num_tokens // self._block_size
        extend_block_hashes(seq, self._block_size, num_full)
        table, hashes, register = seq.block_table, seq.block_hashes, self.register
        for i in range(seq.num_committed_blocks, num_full):
            register(table[i], hashes[i])
        return NOTHING_ELSE

    def register(self, block: int, block_hash: bytes) -> None:
        """Register one block under a hash, unless another one has it."""
        if self._block_of.setdefault(block_hash, block) == block:
            self._hash_of[block] = block_hash
            self._held_tokens[block] = self._block_size

    def remove(self, block: int) -> Sequence[int]:
        """Forget what one block holds."""
        block_hash = self._hash_of[block]
        if block_hash is None:
            return ()
        del self._block_of[block_hash]
        self._hash_of[block] = None
        self._held_tokens[block] = 0
        return (block,)

    def clear(self) -> int:
        """Forget everything; returns how many blocks were registered."""
        blocks = list(self._block_of.values())
        for block in blocks:
            self.remove(block)
        return len(blocks)

    def block_hash(self, block: int) -> bytes | None:
        """The hash that a block is registered under, or None."""
        return self._hash_of[block]

    def token_ids(self, block: int) -> tuple[int, ...]:
        """Nothing: a hash does not say what it was made of."""
        del block
        return ()

    def is_of(self, block: int, seq: KVSequence, table_index: int) -> bool:
        """Whether the block's hash is that of the sequence's tokens up to the block's end."""
        fresh = KVSequence(seq.token_ids, seq.cache_salt)
        extend_block_hashes(fresh, self._block_size, table_index + 1)
        return self._hash_of[block] == fresh.block_hashes[table_index]

    def check(self, ref_counts: Sequence[int], eviction_order: Sequence[int]) -> None:
        """Raise InvariantError unless hashes and blocks map to each other one to one; any order of eviction will do."""
        del ref_counts, eviction_order
        forward = {block: block_hash for block_hash, block in self._block_of.items()}
        backward = {block: block_hash for block, block_hash in enumerate(self._hash_of) if block_hash is not None}
        if forward != backward or len(forward) != len(self):
            odd = sorted(
                block for block in forward.keys() | backward.keys() if forward.get(block) != backward.get(block)
            )
            fail(f"{len(self)} hashes and {len(backward)} registered blocks do not map one to one; blocks {odd} differ")
        if [held > 0 for held in self._held_tokens] != [block in backward for block in range(len(self._hash_of))]:
            fail("held_tokens does not say which blocks are registered")
