"""Blocks handed out and taken back, with the arithmetic spelled out."""

import pytest

from infra_lab.errors import ConfigError, InvariantError
from infra_lab.paged_kv.block_manager import BlockCopy, BlockManager, PrefixIndexName
from infra_lab.paged_kv.sequence import KVSequence


def sequence(num_tokens: int, first: int = 0, salt: str = "") -> KVSequence:
    return KVSequence(list(range(first, first + num_tokens)), salt)


def compute(manager: BlockManager, seq: KVSequence) -> None:
    """Open, grow and commit a sequence, as one step would."""
    start = manager.open(seq)
    assert manager.grow(seq, len(seq.token_ids), start) == ()
    manager.commit(seq, len(seq.token_ids))


@pytest.mark.parametrize("arguments", [(0, 16), (-1, 16), (8, 0), (8, -4), (8.0, 16), ("8", 16)])
def test_impossible_sizes_are_refused_with_the_number(arguments) -> None:
    bad = next(value for value in arguments if not isinstance(value, int) or value < 1)
    with pytest.raises(ConfigError, match=f"is {bad!r}; it must be a whole number, at least 1"):
        BlockManager(*arguments)


@pytest.mark.parametrize(
    ("num_tokens", "num_blocks"),
    [
        (1, 1),
        (15, 1),
        (16, 1),  # 16 tokens / 16 = 1 full block: exactly N blocks take N
        (17, 2),  # 17 tokens / 16 = 1 full block + 1: one more token takes one more block
        (55, 4),  # 55 tokens / 16 = 3 full blocks + 7
        (64, 4),  # 64 tokens / 16 = 4 full blocks
        (65, 5),
    ],
)
def test_a_prompt_takes_as_many_blocks_as_it_needs(
    num_tokens: int, num_blocks: int, prefix_index: PrefixIndexName
) -> None:
    manager = BlockManager(num_blocks=8, block_size=16, prefix_index=prefix_index)
    seq = sequence(num_tokens)
    assert manager.open(seq) == 0
    assert manager.blocks_to_grow(seq, num_tokens, 0) == num_blocks
    assert manager.grow(seq, num_tokens, 0) == ()
    assert seq.block_table == list(range(num_blocks))
    assert seq.capacity == num_blocks * 16
    assert manager.num_free_blocks == 8 - num_blocks
    manager.check_integrity([seq])


def test_decoding_asks_for_a_block_only_at_a_border(prefix_index: PrefixIndexName) -> None:
    manager = BlockManager(num_blocks=8, block_size=4, prefix_index=prefix_index)
    seq = sequence(6)
    compute(manager, seq)
    # 6 tokens / 4 = 1 full block + 2; tokens 6 and 7 fit, token 8 does not.
    assert seq.capacity == 8
    assert manager.blocks_to_grow(seq, 8, 6) == 0
    assert manager.blocks_to_grow(seq, 9, 8) == 1
    assert manager.grow(seq, 9, 8) == ()
    assert (seq.block_table, seq.capacity) == ([0, 1, 2], 12)


def test_chunks_of_a_prompt_grow_one_table(prefix_index: PrefixIndexName) -> None:
    manager = BlockManager(num_blocks=8, block_size=4, prefix_index=prefix_index)
    seq = sequence(11)
    manager.open(seq)
    for start, stop, table in [(0, 5, [0, 1]), (5, 10, [0, 1, 2]), (10, 11, [0, 1, 2])]:
        assert manager.grow(seq, stop, start) == ()
        assert seq.block_table == table
        manager.commit(seq, stop)
    assert seq.num_committed_blocks == 2  # 11 tokens / 4 = 2 full blocks + 3


def test_grow_is_all_or_nothing(prefix_index: PrefixIndexName) -> None:
    manager = BlockManager(num_blocks=4, block_size=4, prefix_index=prefix_index)
    holder, seq = sequence(8), sequence(12, first=100)
    compute(manager, holder)
    manager.open(seq)
    # 12 tokens / 4 = 3 blocks; 4 - 2 = 2 are free.
    assert manager.grow(seq, 12, 0) is None
    assert (seq.block_table, seq.capacity, manager.num_free_blocks) == ([], 0, 2)
    assert manager.grow(seq, 8, 0) == ()
    assert manager.grow(seq, 12, 8) is None
    assert (seq.block_table, seq.capacity, manager.num_free_blocks) == ([2, 3], 8, 0)
    manager.check_integrity([holder, seq])


def test_free_gives_everything_back_and_may_be_called_again(prefix_index: PrefixIndexName) -> None:
    manager = BlockManager(num_blocks=4, block_size=4, prefix_index=prefix_index)
    seq = sequence(10)
    compute(manager, seq)
    for _ in range(2):
        manager.free(seq)
        assert (seq.block_table, seq.capacity, seq.num_committed_blocks) == ([], 0, 0)
        assert manager.num_free_blocks == 4
        manager.check_integrity([])


def test_opening_a_sequence_that_holds_blocks_is_a_mistake(prefix_index: PrefixIndexName) -> None:
    manager = BlockManager(num_blocks=4, block_size=4, prefix_index=prefix_index)
    seq = sequence(10)
    compute(manager, seq)
    with pytest.raises(InvariantError, match="holds 3 blocks"):
        manager.open(seq)


# ---- fork and copy-on-write ----


def test_the_first_to_write_to_a_shared_block_gets_a_copy(prefix_index: PrefixIndexName) -> None:
    manager = BlockManager(num_blocks=8, block_size=4, prefix_index=prefix_index)
    parent, child = sequence(9), sequence(9)
    compute(manager, parent)
    manager.fork(parent, child, 9)
    # 9 tokens / 4 = 2 full blocks + 1: the third block is shared, and partial.
    assert child.block_table == parent.block_table == [0, 1, 2]
    assert child.capacity == parent.capacity == 8
    assert manager.blocks_to_grow(parent, 10, 9) == 1
    assert manager.grow(parent, 10, 9) == (BlockCopy(source=2, destination=3),)
    assert (parent.block_table, parent.capacity) == ([0, 1, 3], 12)
    # The child is its only owner now, and writes in place.
    assert manager.blocks_to_grow(child, 10, 9) == 0
    assert manager.grow(child, 10, 9) == ()
    assert (child.block_table, child.capacity) == ([0, 1, 2], 12)
    assert manager.stats.copies == 1
    manager.check_integrity([parent, child])


def test_a_fork_at_a_block_border_shares_nothing_that_is_written(prefix_index: PrefixIndexName) -> None:
    manager = BlockManager(num_blocks=8, block_size=4, prefix_index=prefix_index)
    parent, child = sequence(8), sequence(8)
    compute(manager, parent)
    manager.fork(parent, child, 8)
    # 8 tokens / 4 = 2 full blocks: token 8 goes to a block that neither has yet.
    assert child.capacity == parent.capacity == 8
    assert manager.grow(parent, 9, 8) == ()
    assert manager.grow(child, 9, 8) == ()
    assert (parent.block_table, child.block_table) == ([0, 1, 2], [0, 1, 3])
    assert manager.stats.copies == 0


def test_a_fork_one_token_back_from_a_full_block_copies_it(prefix_index: PrefixIndexName) -> None:
    manager = BlockManager(num_blocks=8, block_size=4, prefix_index=prefix_index)
    parent, child = sequence(8), sequence(8)
    compute(manager, parent)
    manager.fork(parent, child, 7)  # the child computes token 7 again, for logits of its own
    assert child.num_committed_blocks == 1
    assert manager.grow(child, 8, 7) == (BlockCopy(1, 2),)
    assert manager.grow(parent, 9, 8) == ()
    assert parent.block_table == [0, 1, 3]


def test_a_registered_block_that_is_written_again_cannot_be_found_meanwhile() -> None:
    """The bug: the last owner of a forked block overwrites it while its old contents can still be found."""
    manager = BlockManager(num_blocks=8, block_size=4)
    parent, child, probe = sequence(8), KVSequence([*range(7), 99]), sequence(9)
    compute(manager, parent)
    manager.fork(parent, child, 7)
    manager.free(parent)
    assert manager.match(probe) == 8
    assert manager.grow(child, 8, 7) == ()  # in place: nobody else refers to it
    assert manager.match(probe) == 4
    manager.commit(child, 8)
    assert manager.match(probe) == 4
    assert manager.match(KVSequence([*range(7), 99, 100])) == 8
    manager.check_integrity([child])


def test_copy_on_write_without_a_free_block_changes_nothing(prefix_index: PrefixIndexName) -> None:
    manager = BlockManager(num_blocks=2, block_size=4, prefix_index=prefix_index)
    parent, child = sequence(6), sequence(6)
    compute(manager, parent)
    manager.fork(parent, child, 6)
    assert manager.grow(child, 7, 6) is None
    assert (child.block_table, child.capacity) == ([0, 1], 4)
    manager.free(parent)
    assert manager.grow(child, 7, 6) == ()


def test_forks_that_cannot_be_are_mistakes(prefix_index: PrefixIndexName) -> None:
    manager = BlockManager(num_blocks=8, block_size=4, prefix_index=prefix_index)
    parent = sequence(9)
    compute(manager, parent)
    with pytest.raises(InvariantError, match="13 tokens = 4 blocks of 4; the parent holds 3"):
        manager.fork(parent, sequence(13), 13)
    with pytest.raises(InvariantError, match="across cache salts: '' and 'tenant'"):
        manager.fork(parent, sequence(9, salt="tenant"), 9)
    with pytest.raises(InvariantError, match="holds 3 blocks"):
        manager.fork(sequence(9), parent, 0)
    manager.check_integrity([parent])
