"""What lies in every KV block, step by step: the block manager's snapshot joined with the requests that own the blocks.

The manager knows blocks, reference counts and hashes; which request a block belongs to, and which tokens it holds, is
known from the requests. A block that nobody refers to any more still holds a prefix that can be found: its tokens are
remembered here by its hash, where the prefix cache itself does not know them (a radix tree does).
"""

from typing import NamedTuple

from infra_lab.paged_kv.block_manager import BlockManager
from infra_lab.paged_kv.snapshot import BlockInfo, BlockState
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

    @property
    def stored_tokens(self) -> int:
        """Slots of used blocks that hold somebody's KV; a shared slot counts once."""
        return sum(max((use.num_tokens for use in block.users), default=0) for block in self.blocks)

    @property
    def reserved_tokens(self) -> int:
        """Slots of used blocks, whether they hold anything or not."""
        return self.count(BlockState.USED) * self.block_size


class KVMapper:
    """Draws `KVMap`s. It remembers the tokens behind each hash that it has seen."""

    def __init__(self) -> None:
        self._tokens_of: dict[bytes, tuple[int, ...]] = {}

    def view(self, blocks: BlockManager, running: list[Request], finished: list[Request]) -> KVMap:
        """Picture the pool after a step; O(pool + the running requests' blocks)."""
        size = blocks.block_size
        for request in (*running, *finished):
            self._remember(request, size)
        users: dict[int, list[BlockUse]] = {}
        held: dict[int, tuple[int, ...]] = {}
        for request in running:
            for index, block in enumerate(request.block_table):
                start = index * size
                num_tokens = min(max(request.num_computed - start, 0), size)
                users.setdefault(block, []).append(BlockUse(request.request_id, index, num_tokens))
                if num_tokens > len(held.get(block, ())):
                    held[block] = tuple(request.token_ids[start : start + num_tokens])
        snapshot = blocks.snapshot()
        views = tuple(
            self._view(info, tuple(users.get(info.block, ())), held.get(info.block, ())) for info in snapshot.blocks
        )
        return KVMap(size, views, snapshot.eviction_order)

    def _remember(self, request: Request, size: int) -> None:
        """Note the tokens behind the request's hashes; they are a chain, so the new ones are at its end."""
        for index in range(len(request.block_hashes) - 1, -1, -1):
            if request.block_hashes[index] in self._tokens_of:
                break
            self._tokens_of[request.block_hashes[index]] = tuple(request.token_ids[index * size : (index + 1) * size])

    def _view(self, info: BlockInfo, users: tuple[BlockUse, ...], held: tuple[int, ...]) -> BlockView:
        if info.state is BlockState.FREE:
            return _FREE
        if info.block_hash is None:
            token_ids = max(info.token_ids, held, key=len)
            return BlockView(info.state, info.ref_count, users, token_ids, info.is_matchable)
        return BlockView(info.state, info.ref_count, users, self._tokens_of.get(info.block_hash, ()), True)


_FREE = BlockView(BlockState.FREE, 0, (), (), False)
