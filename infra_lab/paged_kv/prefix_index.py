"""What the prefix cache asks of an index: where the KV of prefixes that were computed once lies now.

index                    finds                          knows a prefix by               in the field
hash_index.HashIndex     whole blocks                   one chained hash a block        vLLM, Kwon 2023
radix_tree.RadixTree     up to the first other token    its tokens, on a tree's path    SGLang, Zheng 2024
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from infra_lab.paged_kv.sequence import KVSequence


class FoundPrefix(NamedTuple):
    """The longest cached prefix of a sequence."""

    num_tokens: int
    blocks: list[int]
    """The ceil(num_tokens / block_size) blocks that hold it. The last one may hold more tokens, which are not the asker's."""


class Registration(NamedTuple):
    """What else changed when blocks of a sequence were registered."""

    duplicates: Sequence[tuple[int, int]] = ()
    """(index in the sequence's table, block): that block is registered with the same contents, and should take its place."""
    dropped: Sequence[int] = ()
    """Blocks that cannot be found any more, since a longer one holds their tokens as well."""


NOTHING_ELSE = Registration()


class PrefixIndex(Protocol):
    """A map from prefixes to the blocks that hold their keys and values; another cache salt, another map.

    It knows nothing of references: a block that sequences are using and one that lies free can both be found, and whoever
    takes a block over for other contents calls `remove` first. A block is registered under one prefix at most, and what is
    registered of it stays as it is until then: its owner may write behind those tokens, never to them.

    Only `find`, `add` and the hash of a block write to a sequence, and no more than its `block_hashes`.
    """

    finds_heads: bool
    """Whether `find` may end inside a block. Then a block is worth a copy before its registered tokens are overwritten."""

    @property
    def held_tokens(self) -> Sequence[int]:
        """By physical block, how many of its tokens can be found; 0 for a block that is not registered."""
        ...

    def __len__(self) -> int:
        """How many blocks are registered."""
        ...

    def find(self, seq: KVSequence, max_tokens: int) -> FoundPrefix:
        """Return the longest cached prefix of `seq`, of its first `max_tokens` tokens; it holds until the next `remove`.

        Costs O(tokens found), whatever else is cached.
        """
        ...

    def add(self, seq: KVSequence, num_tokens: int) -> Registration:
        """Register the blocks of the first `num_tokens` tokens of `seq`, whose KV is computed.

        The first `seq.num_committed_blocks` of its table are registered already. A prefix that another block holds stays
        with that one. A last block that is only partly filled is registered by an index that finds heads, and else is not.
        """
        ...

    def remove(self, block: int) -> Sequence[int]:
        """Forget a block; return all that cannot be found any more: it, and those that can only be reached through it."""
        ...

    def clear(self) -> int:
        """Forget everything; return how many blocks were registered."""
        ...

    def block_hash(self, block: int) -> bytes | None:
        """The chained hash that a block is registered under, where the index goes by hashes."""
        ...

    def token_ids(self, block: int) -> tuple[int, ...]:
        """The tokens of a block that can be found, where the index knows them."""
        ...

    def is_of(self, block: int, seq: KVSequence, table_index: int) -> bool:
        """Whether a registered block holds tokens of `seq` from `table_index * block_size` on, after the same prefix."""
        ...

    def check(self, ref_counts: Sequence[int], eviction_order: Sequence[int]) -> None:
        """Raise InvariantError unless its own records fit together, and fit the order in which blocks are evicted."""
        ...
