"""What is found in the prefix cache, from when, for whom, and what goes first."""

import pytest

from infra_lab.paged_kv.block_manager import BlockManager, PrefixIndexName
from infra_lab.paged_kv.sequence import KVSequence


def compute(manager: BlockManager, tokens: list[int], salt: str = "") -> KVSequence:
    """Run a prompt through open, grow and commit; it stays open."""
    seq = KVSequence(list(tokens), salt)
    start = manager.open(seq)
    assert manager.grow(seq, len(tokens), start) == ()
    manager.commit(seq, len(tokens))
    return seq


def match(manager: BlockManager, tokens: list[int], salt: str = "") -> int:
    return manager.match(KVSequence(list(tokens), salt))


@pytest.mark.parametrize(
    ("num_tokens", "num_found"),
    [
        (12, 8),  # 12 tokens / 4 = 3 full blocks, all cached; but the last token must be computed, so 2 blocks are used
        (13, 12),  # 13 tokens / 4 = 3 full blocks + 1: the last token is the one that is computed
        (11, 8),  # 11 tokens / 4 = 2 full blocks + 3: whole blocks only
        (4, 0),
        (5, 4),
        (3, 0),
        (40, 12),
    ],
)
def test_whole_blocks_and_never_the_last_token(num_tokens: int, num_found: int) -> None:
    manager = BlockManager(num_blocks=32, block_size=4)
    owner = compute(manager, list(range(14)))  # 14 tokens / 4 = 3 full blocks + 2
    seq = KVSequence(list(range(num_tokens)))
    assert manager.match(seq) == num_found
    assert (seq.block_table, seq.capacity, manager.stats.queried_tokens) == ([], 0, 14)  # a look without a claim
    assert manager.open(seq) == num_found
    assert seq.block_table == owner.block_table[: num_found // 4]
    assert (seq.capacity, seq.num_committed_blocks) == (num_found, num_found // 4)
    assert manager.stats.hit_tokens == num_found
    manager.check_integrity([owner, seq])


def test_blocks_are_found_only_after_they_were_computed(prefix_index: PrefixIndexName) -> None:
    manager = BlockManager(num_blocks=8, block_size=4, prefix_index=prefix_index)
    seq = KVSequence(list(range(12)))
    manager.open(seq)
    manager.grow(seq, 12, 0)
    assert match(manager, list(range(13))) == 0  # room is not contents
    manager.commit(seq, 7)
    assert match(manager, list(range(13))) == 4  # 7 tokens / 4 = 1 full block + 3
    manager.commit(seq, 8)
    assert match(manager, list(range(13))) == 8
    manager.commit(seq, 12)
    assert match(manager, list(range(13))) == 12


def test_generated_tokens_are_found_too(prefix_index: PrefixIndexName) -> None:
    manager = BlockManager(num_blocks=8, block_size=4, prefix_index=prefix_index)
    seq = compute(manager, [1, 2, 3])
    for token in (4, 5):
        seq.token_ids.append(token)
        manager.grow(seq, len(seq.token_ids), len(seq.token_ids) - 1)
        manager.commit(seq, len(seq.token_ids))
    assert match(manager, [1, 2, 3, 4, 9]) == 4  # the next turn of a conversation


def test_a_hole_ends_the_prefix(prefix_index: PrefixIndexName) -> None:
    manager = BlockManager(num_blocks=8, block_size=2, prefix_index=prefix_index)
    compute(manager, [1, 2, 3, 4, 5, 6])
    assert match(manager, [1, 2, 9, 4, 5, 6, 7]) == 2
    assert match(manager, [9, 2, 3, 4, 5, 6, 7]) == 0
    assert match(manager, [3, 4, 5]) == 0  # the same tokens after another prefix are other contents


def test_salts_do_not_see_each_other(prefix_index: PrefixIndexName) -> None:
    manager = BlockManager(num_blocks=8, block_size=2, prefix_index=prefix_index)
    compute(manager, [1, 2, 3, 4], salt="a")
    assert match(manager, [1, 2, 3, 4, 5], salt="a") == 4
    assert match(manager, [1, 2, 3, 4, 5], salt="b") == 0
    assert match(manager, [1, 2, 3, 4, 5]) == 0


def test_the_second_to_compute_the_same_keeps_a_private_block() -> None:
    manager = BlockManager(num_blocks=8, block_size=2)
    first, second = KVSequence([1, 2, 3]), KVSequence([1, 2, 3])
    for seq in (first, second):  # both admitted in one step: neither can see the other's block
        assert manager.open(seq) == 0
        manager.grow(seq, 3, 0)
    for seq in (first, second):
        manager.commit(seq, 3)
    manager.check_integrity([first, second])
    assert compute(manager, [1, 2, 9]).block_table[0] == first.block_table[0]
    manager.free(second)
    assert manager.snapshot().eviction_order == ()  # the duplicate is worth nothing, and is reused first


def test_a_chain_loses_its_tail_first_and_older_chains_go_before_younger_ones(prefix_index: PrefixIndexName) -> None:
    manager = BlockManager(num_blocks=6, block_size=2, prefix_index=prefix_index)
    old, young = [1, 2, 3, 4, 5, 6], [7, 8, 9, 10]
    old_seq, young_seq = compute(manager, old), compute(manager, young)  # 3 + 2 blocks, 1 left empty
    manager.free(old_seq)
    manager.free(young_seq)
    assert manager.snapshot().eviction_order == (2, 1, 0, 4, 3)
    lengths = []
    taker = KVSequence(list(range(100, 112)))
    for num_tokens in range(2, 13, 2):  # takes one block at a time: first the empty one
        assert manager.grow(taker, num_tokens, num_tokens - 2) == ()
        lengths.append((match(manager, [*old, 0]), match(manager, [*young, 0])))
    assert lengths == [(6, 4), (4, 4), (2, 4), (0, 4), (0, 2), (0, 0)]
    assert manager.stats.evictions == 5


def test_a_hit_makes_a_chain_young_again(prefix_index: PrefixIndexName) -> None:
    manager = BlockManager(num_blocks=4, block_size=2, prefix_index=prefix_index)
    first, second = compute(manager, [1, 2, 3, 4]), compute(manager, [5, 6, 7, 8])
    manager.free(first)
    manager.free(second)
    again = KVSequence([1, 2, 3, 4, 0])
    assert manager.open(again) == 4
    manager.free(again)
    assert manager.snapshot().eviction_order == (3, 2, 1, 0)


def test_a_claimed_prefix_cannot_be_evicted(prefix_index: PrefixIndexName) -> None:
    manager = BlockManager(num_blocks=3, block_size=2, prefix_index=prefix_index)
    manager.free(compute(manager, [1, 2, 3, 4]))
    seq, other = KVSequence([1, 2, 3, 4, 5]), KVSequence([9] * 4)
    assert manager.num_free_blocks == 3
    assert manager.open(seq) == 4
    assert manager.num_free_blocks == 1
    assert manager.grow(other, 4, 0) is None
    assert manager.grow(seq, 5, 4) == ()
    manager.check_integrity([seq, other])


def test_preempted_then_found_again(prefix_index: PrefixIndexName) -> None:
    manager = BlockManager(num_blocks=8, block_size=4, prefix_index=prefix_index)
    seq = compute(manager, list(range(10)))
    manager.free(seq)
    assert manager.open(seq) == 8  # 10 tokens / 4 = 2 full blocks + 2, of which only 2 tokens must be computed again
    manager.check_integrity([seq])


def test_reset_forgets_everything_at_once_and_for_good(prefix_index: PrefixIndexName) -> None:
    manager = BlockManager(num_blocks=16, block_size=2, prefix_index=prefix_index)
    manager.free(compute(manager, [1, 2, 3, 4]))
    running = compute(manager, [5, 6, 7, 8, 9])
    assert manager.reset_prefix_cache() == 4
    assert match(manager, [1, 2, 3]) == match(manager, [5, 6, 7]) == 0
    assert manager.num_free_blocks == 13
    # What the running sequence fills now depends on KV from before the reset: it must not be registered behind a prefix
    # that is computed anew (with other weights, say).
    running.token_ids.append(10)
    manager.commit(running, 6)
    renewed = compute(manager, [5, 6, 7, 8])
    assert match(manager, [5, 6, 7, 8, 9, 10, 11]) == 4
    manager.check_integrity([running, renewed])
    manager.free(running)
    assert manager.open(running) == 4
    assert manager.grow(running, 6, 4) == ()
    manager.commit(running, 6)
    assert match(manager, [5, 6, 7, 8, 9, 10, 11]) == 6
    assert manager.reset_prefix_cache() == 3
    assert manager.reset_prefix_cache() == 0


def test_without_a_prefix_cache_nothing_is_found_or_hashed(prefix_index: PrefixIndexName) -> None:
    manager = BlockManager(num_blocks=8, block_size=2, enable_prefix_cache=False, prefix_index=prefix_index)
    seq = compute(manager, [1, 2, 3, 4])
    assert match(manager, [1, 2, 3, 4, 5]) == 0
    assert seq.block_hashes == []
    manager.free(seq)
    assert manager.num_free_blocks == 8
    manager.check_integrity([])
