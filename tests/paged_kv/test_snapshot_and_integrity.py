"""The pictures of the pool, and the audit: every kind of damage is reported with its numbers."""

from collections.abc import Callable

import pytest

from infra_lab.errors import InvariantError
from infra_lab.paged_kv.block_manager import BlockManager
from infra_lab.paged_kv.sequence import KVSequence
from infra_lab.paged_kv.snapshot import BlockState

Damage = Callable[[BlockManager, KVSequence], object]


def pool() -> tuple[BlockManager, KVSequence]:
    """Blocks of 2 tokens: 0 and 1 cached, 2 (registered) and 3 (partial) used, 4 and 5 free."""
    manager = BlockManager(num_blocks=6, block_size=2)
    gone, running = KVSequence([1, 2, 3, 4]), KVSequence([5, 6, 7])
    for seq in (gone, running):
        manager.open(seq)
        manager.grow(seq, len(seq.token_ids), 0)
        manager.commit(seq, len(seq.token_ids))
    manager.free(gone)
    return manager, running


def test_snapshot_says_what_each_block_is_doing() -> None:
    manager, running = pool()
    snapshot = manager.snapshot()
    assert [info.state.value for info in snapshot.blocks] == ["cached", "cached", "used", "used", "free", "free"]
    assert [info.ref_count for info in snapshot.blocks] == [0, 0, 1, 1, 0, 0]
    assert [info.block_hash is not None for info in snapshot.blocks] == [True, True, True, False, False, False]
    assert snapshot.blocks[2].block_hash == running.block_hashes[0]
    assert (snapshot.block_size, snapshot.eviction_order) == (2, (1, 0))
    manager.free(running)
    assert snapshot.blocks[2].state is BlockState.USED  # a picture, not a window
    manager.open(KVSequence([1, 2, 3]))
    assert (snapshot.stats.hit_tokens, manager.stats.hit_tokens) == (0, 2)
    assert manager.stats.hit_rate == 2 / 10


def test_integrity_of_a_sound_pool() -> None:
    manager, running = pool()
    manager.check_integrity([running])


def register_twice(manager: BlockManager, running: KVSequence) -> None:
    manager._index._block_of[b"another hash"] = 2


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda manager, running: running.block_table.pop(), "block 3 has ref_count 1, but stands in 0 block tables"),
        (lambda manager, running: running.block_table.append(6), r"block tables name \[6\], but the blocks are 0 to 5"),
        (lambda manager, running: manager._free.put_empty(3), "block 3 has ref_count 1 and is 1 times in the free"),
        (lambda manager, running: manager._free.put_empty(4), "block 4 has ref_count 0 and is 2 times in the free"),
        (lambda manager, running: manager._free.take(1), "block 4 has ref_count 0 and is 0 times in the free list"),
        (lambda manager, running: manager._free.forget_cached(), "counts as empty, but is registered"),
        (lambda manager, running: manager._index.remove(0), "block 0 waits for eviction .* but is not registered"),
        (register_twice, "4 hashes and 3 registered blocks .* blocks .2. differ"),
        (lambda manager, running: setattr(running, "capacity", 5), "capacity is 5 tokens with 2 blocks of 2"),
        (lambda manager, running: setattr(running, "num_committed_blocks", 2), "2 blocks committed, of 2 in the table"),
        (lambda manager, running: running.token_ids.__setitem__(0, 9), "hashes of 1 blocks are not those"),
        (lambda manager, running: setattr(running, "cache_salt", "other"), "hashes of 1 blocks are not those"),
    ],
)  # fmt: skip
def test_integrity_reports_damage(damage: Damage, message: str) -> None:
    manager, running = pool()
    damage(manager, running)
    with pytest.raises(InvariantError, match=message):
        manager.check_integrity([running])


def test_integrity_notices_a_block_registered_under_somebody_elses_prefix() -> None:
    manager, running = pool()
    manager._index.remove(2)
    manager._index.register(2, b"of another prefix")
    with pytest.raises(InvariantError, match="block 2 is registered under another prefix"):
        manager.check_integrity([running])


def test_integrity_notices_a_block_that_stands_twice_in_one_table() -> None:
    manager, running = pool()
    running.block_table[1] = 2
    manager._ref_counts[2], manager._ref_counts[3] = 2, 0
    manager._free.put_empty(3)
    with pytest.raises(InvariantError, match=r"stands twice in one table: \[2, 2\]"):
        manager.check_integrity([running])
