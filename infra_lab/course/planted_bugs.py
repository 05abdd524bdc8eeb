"""Real bugs to plant into a running engine, for lessons in which the learner finds out what breaks.

Each is one that a block manager has had somewhere: small, silent, and visible only to the right invariant. What it does
stands in its docstring; a lesson shows that last.
"""

from infra_lab.engine.llm import LLM
from infra_lab.errors import ConfigError, InvalidRequestError
from infra_lab.paged_kv.block_manager import BlockCopy, BlockManager
from infra_lab.paged_kv.sequence import KVSequence


class LeaksAReference(BlockManager):
    """`free` forgets the last block of a table: nobody names it any more, and it is never handed out again."""

    def free(self, seq: KVSequence) -> None:
        """Free all blocks but the last."""
        del seq.block_table[-1:]
        super().free(seq)


class WritesToSharedBlocks(BlockManager):
    """No copy-on-write: whoever writes to a shared block writes into everybody's."""

    def blocks_to_grow(self, seq: KVSequence, num_tokens: int, start: int) -> int:
        """Count new blocks only, none for a copy."""
        return max(-(-num_tokens // self.block_size) - len(seq.block_table), 0)

    def _make_writable(self, table: list[int], index: int, offset: int, *, is_copied: bool) -> tuple[BlockCopy, ...]:
        return ()


class KeepsHashOfEvictedBlock(BlockManager):
    """An evicted block can still be found under the prefix that it held before."""

    def _take(self, num_blocks: int) -> list[int]:
        blocks = self._free.take(num_blocks)
        for block in blocks:
            self._ref_counts[block] = 1
        return blocks


KV_BUGS: dict[str, type[BlockManager]] = {
    "none": BlockManager,
    "A": LeaksAReference,
    "B": WritesToSharedBlocks,
    "C": KeepsHashOfEvictedBlock,
}


def plant_kv_bug(llm: LLM, name: str) -> None:
    """Give an idle engine a fresh block manager with the bug of that name; "none" gives it a sound one.

    Raises ConfigError for an unknown name, and InvalidRequestError if requests are open.
    """
    if name not in KV_BUGS:
        raise ConfigError(f"unknown bug {name!r}; known: {', '.join(KV_BUGS)}")
    scheduler = llm.core.scheduler
    if scheduler.has_work:
        raise InvalidRequestError(f"{len(scheduler.requests)} requests are open; plant a bug when the engine is idle")
    sound = scheduler.blocks
    scheduler.blocks = KV_BUGS[name](sound.num_blocks, sound.block_size, enable_prefix_cache=sound.enable_prefix_cache)
