"""Which calls may go to the engine now: those that would compute what another one is computing wait for it.

The prefix cache has a block once it is computed. Prompts that begin alike and come in together, as those of two forks, of
a question's choices or of a batch do, would each find nothing there, and compute the same blocks side by side:

    block          0       1       2       3
    fork A     │   =   │   =   │   =   │   a   │    computes 0 .. 3
    fork B     │   =   │   =   │   =   │   b   │    waits; then finds 0 .. 2 in the cache, and computes 3
    other C    │   c   │                            shares nothing: goes at once

Order costs a step, as long as the shared part takes to compute; SGLang, too, computes it before it forks.
"""

from collections.abc import Iterable, Sequence

from infra_lab.engine.programs.calls import Call
from infra_lab.paged_kv.block_manager import BlockManager
from infra_lab.paged_kv.hashing import extend_block_hashes


class PrefixGate:
    """Looks at the prefix cache and at the prompts on their way; changes neither."""

    def __init__(self, blocks: BlockManager) -> None:
        self._blocks = blocks

    def passing(self, waiting: Sequence[Call], is_open: Iterable[Call]) -> list[Call]:
        """Return those of `waiting` that may be submitted now, in their order.

        A call is kept back while the first block that it misses is part of a prompt that is being computed, or of one that
        passes before it. Somebody always goes on: whoever is waited for is in the engine.
        """
        if not waiting or not self._blocks.enable_prefix_cache:
            return list(waiting)
        on_the_way = {block for call in is_open if not call.has_prompt for block in self._full_blocks(call)}
        passing = []
        for call in waiting:
            blocks = self._full_blocks(call)
            missing = self._blocks.match(call.sequence) // self._blocks.block_size
            usable = (len(call.sequence.token_ids) - 1) // self._blocks.block_size  # the last token is always computed
            if missing < usable and blocks[missing] in on_the_way:
                continue
            on_the_way.update(blocks)
            passing.append(call)
        return passing

    def _full_blocks(self, call: Call) -> list[bytes]:
        """Names of the full blocks of a prompt."""
        sequence, size = call.sequence, self._blocks.block_size
        extend_block_hashes(sequence, size, len(sequence.token_ids) // size)
        return sequence.block_hashes
