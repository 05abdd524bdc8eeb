"""What lies in every KV block, step by step: the block manager's snapshot joined with the requests that own the blocks.

The manager knows blocks, reference counts and hashes; which request a block belongs to, and which tokens it holds, is
known from the requests. A block that nobody refers to any more still holds a prefix that can be found: its tokens are
remembered here by its hash.
"""

from typing import NamedTuple

from infra_lab.paged_kv.block_manager import BlockManager
from infra_lab.paged_kv.snapshot import BlockState
from infra_lab.scheduler.request import Request


class BlockUse(NamedTuple):
    """One request's claim on a block."""

    request_id: str
    table_index: int
    """Where in the request's block table: the block holds its tokens from `table_index * block_size` on."""
    num_tokens: int
    """How many of the block's slots hold computed KV of this request."""


class BlockView(NamedTuple):
    """One physical block at the end of a step."""

    state: BlockState
    ref_count: int
    users: tuple[BlockUse, ...]
    token_ids: tuple[int, ...]
    """The tokens whose keys and values it holds, where they are known."""
    is_matchable: bool
    """Whether a later request with the same prefix finds it."""


class KVMap(NamedTuple):
    """The whole pool at the end of a step."""

    block_size: int
    blocks: tuple[BlockView, ...]
    """Indexed by physical block."""
    eviction_order: tuple[int, ...]
    """The cached blocks, the next one to go first."""

    def count(self, state: BlockState) -> int:
        """How many blocks are in that state."""
        return sum(block.state is state for block in self.blocks)


class KVMapper:
    """Draws `KVMap`s. It remembers the tokens behind each hash that it has seen."""

    def __init__(self) -> None:
        self._tokens_of: dict[bytes, tuple[int, ...]] = {}

    def view(self, blocks: BlockManager, running: list[Request], finished: list[Request]) -> KVMap:
        """Picture the pool after a step; O(pool + the running requests' blocks)."""
        size = blocks.block_size
        for request in (*running, *finished):
            for index, block_hash in enumerate(request.block_hashes):
                if block_hash not in self._tokens_of:
                    self._tokens_of[block_hash] = tuple(request.token_ids[index * size : (index + 1) * size])
        users: list[list[BlockUse]] = [[] for _ in range(blocks.num_blocks)]
        held: list[tuple[int, ...]] = [()] * blocks.num_blocks
        for request in running:
            for index, block in enumerate(request.block_table):
                start = index * size
                num_tokens = min(max(request.num_computed - start, 0), size)
                users[block].append(BlockUse(request.request_id, index, num_tokens))
                if num_tokens > len(held[block]):
                    held[block] = tuple(request.token_ids[start : start + num_tokens])
        snapshot = blocks.snapshot()
        views = []
        for info in snapshot.blocks:
            is_matchable = info.block_hash is not None
            tokens = self._tokens_of.get(info.block_hash, ()) if info.block_hash is not None else held[info.block]
            views.append(BlockView(info.state, info.ref_count, tuple(users[info.block]), tokens, is_matchable))
        return KVMap(size, tuple(views), snapshot.eviction_order)
