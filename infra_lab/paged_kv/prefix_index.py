"""The prefix cache's index: which block holds the prefix with a given hash, and the other way round.

At most one block a hash, at most one hash a block. The index says nothing about references: a block that sequences are
using and one that lies free can both be found, and whoever takes a block over for other contents removes it here first.
"""

from collections.abc import Mapping, Sequence


class PrefixIndex:
    """A one-to-one map between chained block hashes and physical blocks."""

    def __init__(self, num_blocks: int) -> None:
        self._block_of: dict[bytes, int] = {}
        self._hash_of: list[bytes | None] = [None] * num_blocks

    def __len__(self) -> int:
        return len(self._block_of)

    @property
    def block_of(self) -> Mapping[bytes, int]:
        """The block that holds a hash."""
        return self._block_of

    @property
    def hash_of(self) -> Sequence[bytes | None]:
        """The hash that a block is registered under, or None."""
        return self._hash_of

    def longest_prefix(self, hashes: Sequence[bytes], num_blocks: int) -> list[int]:
        """Return the blocks of the longest unbroken run of known hashes, of the first `num_blocks` ones."""
        block_of = self._block_of
        found: list[int] = []
        for i in range(num_blocks):
            block = block_of.get(hashes[i])
            if block is None:  # what follows a hole cannot be used, even where it is cached
                break
            found.append(block)
        return found

    def add(self, block: int, block_hash: bytes) -> None:
        """Register a block; where another one already holds the hash, that one stays and this one remains private."""
        if self._block_of.setdefault(block_hash, block) == block:
            self._hash_of[block] = block_hash

    def remove(self, block: int) -> bool:
        """Forget what a block holds; returns whether it held anything."""
        block_hash = self._hash_of[block]
        if block_hash is None:
            return False
        del self._block_of[block_hash]
        self._hash_of[block] = None
        return True

    def clear(self) -> int:
        """Forget everything; returns how many blocks were registered."""
        num_blocks = len(self._block_of)
        for block in self._block_of.values():
            self._hash_of[block] = None
        self._block_of.clear()
        return num_blocks
