"""Frozen pictures of the block manager, for block maps and metrics."""

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple


@dataclass(slots=True)
class CacheStats:
    """Counts since the manager was made."""

    queried_tokens: int = 0
    """Tokens of all opened sequences, counted at every `open`: again after a preemption, or a try that was given up."""
    hit_tokens: int = 0
    """Those of them that were found in the prefix cache."""
    evictions: int = 0
    """Cached blocks that were given to other contents."""
    copies: int = 0
    """Blocks copied because a sequence wrote to one that it shared."""

    @property
    def hit_rate(self) -> float:
        """Share of the queried tokens that did not have to be computed, 0 to 1."""
        return self.hit_tokens / self.queried_tokens if self.queried_tokens else 0.0


class BlockState(Enum):
    """What a physical block is doing."""

    FREE = "free"
    """Nobody refers to it, and it holds nothing that could be found."""
    CACHED = "cached"
    """Nobody refers to it, but its prefix can still be found; it can be evicted at any time."""
    USED = "used"
    """At least one sequence has it in its table."""


class BlockInfo(NamedTuple):
    """One physical block."""

    block: int
    state: BlockState
    ref_count: int
    block_hash: bytes | None
    """The prefix that others can find here, where hashes name it; None for a block that is empty, partial or a duplicate."""
    token_ids: tuple[int, ...] = ()
    """The block's tokens that others can find here, by a radix tree, which knows them."""

    @property
    def is_matchable(self) -> bool:
        """Whether a prefix can be found here."""
        return self.block_hash is not None or bool(self.token_ids)


@dataclass(frozen=True, slots=True)
class CacheSnapshot:
    """The whole pool at one moment."""

    block_size: int
    blocks: tuple[BlockInfo, ...]
    """Indexed by physical block."""
    eviction_order: tuple[int, ...]
    """The cached blocks, the next one to go first."""
    stats: CacheStats
    """A copy."""
