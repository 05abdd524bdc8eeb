"""What the radix tree finds that hashes do not, with the arithmetic spelled out; and that its audit notices damage."""

import random
from collections.abc import Callable

import pytest

from infra_lab.errors import ConfigError, InvariantError
from infra_lab.paged_kv.block_manager import BlockCopy, BlockManager, PrefixIndexName
from infra_lab.paged_kv.radix_tree import RadixTree
from infra_lab.paged_kv.sequence import KVSequence


def radix_manager(num_blocks: int = 16, block_size: int = 4) -> BlockManager:
    return BlockManager(num_blocks, block_size, prefix_index="radix")


def compute(manager: BlockManager, tokens: list[int], salt: str = "") -> tuple[KVSequence, tuple[BlockCopy, ...]]:
    """Run a prompt through open, grow and commit; it stays open."""
    seq = KVSequence(list(tokens), salt)
    copies = manager.grow(seq, len(tokens), manager.open(seq))
    assert copies is not None
    manager.commit(seq, len(tokens))
    return seq, copies


def finish(manager: BlockManager, seq: KVSequence, num_computed: int | None = None) -> None:
    manager.commit_tail(seq, len(seq.token_ids) if num_computed is None else num_computed)
    manager.free(seq)


def match(manager: BlockManager, tokens: list[int], salt: str = "") -> int:
    return manager.match(KVSequence(list(tokens), salt))


def test_an_unknown_index_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match="unknown prefix_index 'trie'; known: hash, radix"):
        BlockManager(4, 4, prefix_index="trie")


@pytest.mark.parametrize(
    ("prompt", "num_found"),
    [
        ([0, 1, 2, 3, 4, 5, 9, 9], 6),  # 6 tokens / 4 = 1 full block + 2: they part inside the second block
        ([0, 1, 2, 3, 9], 4),
        ([0, 9], 1),
        ([9, 1, 2], 0),
        ([0, 1, 2, 3, 4, 5, 6, 7], 7),  # all 8 are cached, and the last one is computed again
        ([0, 1, 2, 3, 4, 5, 6, 7, 8, 9], 9),  # 9 tokens / 4 = 2 full blocks + 1, a tail, of a sequence that has ended
        ([0], 0),
    ],
)
def test_found_up_to_the_first_other_token(prompt: list[int], num_found: int) -> None:
    manager = radix_manager()
    owner, _ = compute(manager, [0, 1, 2, 3, 4, 5, 6, 7, 8])
    finish(manager, owner)
    seq = KVSequence(prompt)
    assert manager.match(seq) == manager.open(seq) == num_found
    assert len(seq.block_table) == -(-num_found // 4)
    assert (seq.capacity, seq.num_committed_blocks) == (num_found // 4 * 4, num_found // 4)
    assert manager.stats.hit_tokens == num_found
    manager.check_integrity([seq])
    manager.cancel_open(seq)
    assert (manager.stats.hit_tokens, manager.stats.queried_tokens) == (0, 9)
    assert match(manager, prompt) == num_found
    manager.check_integrity([])


def test_the_head_of_a_block_is_reused_by_a_copy_and_the_block_stays_cached() -> None:
    manager = radix_manager()
    first, _ = compute(manager, [0, 1, 2, 3, 4, 5, 6, 7])
    manager.free(first)
    seq = KVSequence([0, 1, 2, 3, 4, 5, 9])
    start = manager.open(seq)
    assert (start, seq.block_table) == (6, [0, 1])
    assert manager.blocks_to_grow(seq, 7, start) == 1
    assert manager.grow(seq, 7, start) == (BlockCopy(source=1, destination=2),)
    assert seq.block_table == [0, 2]
    manager.commit(seq, 7)
    assert match(manager, [0, 1, 2, 3, 4, 5, 6, 7, 8]) == 8
    manager.check_integrity([seq])
    assert manager.stats.copies == 1


def test_the_block_of_one_who_runs_is_copied_too() -> None:
    manager = radix_manager()
    first, _ = compute(manager, [0, 1, 2, 3, 4, 5, 6, 7])
    second, copies = compute(manager, [0, 1, 2, 3, 4, 5, 9])
    assert copies == (BlockCopy(1, 2),)
    assert (first.block_table, second.block_table) == ([0, 1], [0, 2])
    manager.check_integrity([first, second])


def test_the_next_turn_goes_on_in_the_tail_without_a_copy() -> None:
    manager = radix_manager()
    turn, _ = compute(manager, [0, 1, 2, 3, 4, 5])
    turn.token_ids.append(6)  # sampled, not computed
    finish(manager, turn, num_computed=6)
    following = KVSequence([0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    assert manager.open(following) == 6
    assert manager.grow(following, 10, 6) == ()
    assert following.block_table == [0, 1, 2]
    assert match(manager, [0, 1, 2, 3, 4, 5, 9]) == 6  # what was there can be found while the block is filled
    manager.commit(following, 10)
    assert match(manager, [0, 1, 2, 3, 4, 5, 6, 7, 9]) == 8
    manager.check_integrity([following])


def test_the_last_block_to_spare_is_not_needed_for_a_copy() -> None:
    """The bug: a request that needs the whole pool waits for ever for a block more, to copy one of its own pool."""
    manager = radix_manager(num_blocks=2)
    first, _ = compute(manager, [0, 1, 2, 3, 4, 5, 6, 7])
    manager.free(first)
    seq = KVSequence([0, 1, 2, 3, 4, 5, 9, 9])
    start = manager.open(seq)
    assert (start, manager.num_free_blocks, manager.blocks_to_grow(seq, 8, start)) == (6, 0, 0)
    assert manager.grow(seq, 8, start) == ()  # in place: what was cached from token 6 on is lost
    assert match(manager, [0, 1, 2, 3, 4, 5, 6, 7, 8]) == 4
    manager.commit(seq, 8)
    assert match(manager, [0, 1, 2, 3, 4, 5, 9, 9, 8]) == 8
    manager.check_integrity([seq])


def test_a_copy_that_nothing_was_computed_after_is_not_registered() -> None:
    """The bug: a request is aborted before its step has copied anything, and its empty block is found by the next one."""
    manager = radix_manager()
    first, _ = compute(manager, [0, 1, 2, 3, 4, 5])
    finish(manager, first)
    seq = KVSequence([0, 1, 2, 3, 4, 9])
    start = manager.open(seq)
    assert manager.grow(seq, 6, start) == (BlockCopy(1, 2),)
    taker = KVSequence([7] * 4 * 16)
    assert manager.grow(taker, 13 * 4, 0) == ()
    assert manager.grow(taker, 14 * 4, 13 * 4) == ()  # the source of the copy goes to somebody else
    finish(manager, seq, num_computed=start)
    assert match(manager, [0, 1, 2, 3, 4, 9]) == 4
    manager.check_integrity([taker])


def test_the_second_to_compute_the_same_gives_its_block_back() -> None:
    manager = BlockManager(num_blocks=8, block_size=2, prefix_index="radix")
    first, second = KVSequence([1, 2, 3]), KVSequence([1, 2, 3])
    for seq in (first, second):  # both admitted in one step: neither can see the other's block
        assert manager.open(seq) == 0
        manager.grow(seq, 3, 0)
    for seq in (first, second):
        manager.commit(seq, 3)
    assert (first.block_table, second.block_table) == ([0, 1], [0, 3])
    assert manager.num_free_blocks == 5
    manager.check_integrity([first, second])


def test_a_fork_that_overwrites_a_cached_block_keeps_it_for_others() -> None:
    manager = radix_manager()
    parent, _ = compute(manager, list(range(8)))
    child = KVSequence([*range(7), 99])
    manager.fork(parent, child, 7)
    manager.free(parent)
    assert manager.grow(child, 8, 7) == (BlockCopy(1, 2),)
    assert match(manager, list(range(9))) == 8
    manager.check_integrity([child])


def test_salts_have_trees_of_their_own() -> None:
    manager = radix_manager()
    for salt in ("a", "b"):
        seq, _ = compute(manager, [0, 1, 2, 3, 4, 5], salt)
        finish(manager, seq)
    assert [match(manager, [0, 1, 2, 3, 4, 5, 6], salt) for salt in ("a", "b", "")] == [6, 6, 0]
    manager.check_integrity([])


def test_the_least_recently_used_leaf_goes_first() -> None:
    manager = radix_manager(num_blocks=5)
    for tail in ([4, 5], [6, 7], [8, 9]):  # one block in common, three leaves of one block
        seq, _ = compute(manager, [0, 1, 2, 3, *tail])
        finish(manager, seq)
    assert match(manager, [0, 1, 2, 3, 4, 5, 0]) == 6
    again, _ = compute(manager, [0, 1, 2, 3, 4, 5, 0])
    finish(manager, again)
    taker = KVSequence([50] * 12)
    manager.grow(taker, 8, 0)  # one empty block, and the leaf that nobody has asked for longest
    probes = ([4, 5, 0], [6, 7, 0], [8, 9, 0])
    assert [match(manager, [0, 1, 2, 3, *probe, 0]) for probe in probes] == [7, 4, 6]
    manager.grow(taker, 12, 8)
    assert [match(manager, [0, 1, 2, 3, *probe, 0]) for probe in probes] == [7, 4, 4]
    manager.check_integrity([taker])


class CountedToken(int):
    """Counts how often a token is compared with another one."""

    num_compared = 0

    def __eq__(self, other: object) -> bool:
        CountedToken.num_compared += 1
        return int(self) == other

    __hash__ = int.__hash__


@pytest.mark.parametrize("num_cached", [10, 1000])
def test_a_match_costs_what_it_finds_however_large_the_tree_is(num_cached: int) -> None:
    manager = radix_manager(num_blocks=20_000)
    shared, rng = list(range(100, 130)), random.Random(0)  # 30 tokens / 4 = 7 full blocks + 2
    for i in range(num_cached):  # they part inside a block, all at one node, and each goes on for long
        seq, _ = compute(manager, [*shared, 1000 + i, *rng.choices(range(50), k=40)])
        finish(manager, seq)
    probe = KVSequence([CountedToken(token) for token in [*shared, 7, *range(500)]])
    CountedToken.num_compared = 0
    assert manager.match(probe) == 30
    assert CountedToken.num_compared <= 2 * 30 + 10


@pytest.mark.parametrize("seed", range(5))
def test_never_less_is_found_than_by_hashes(seed: int) -> None:
    """Conversations that branch, in a pool that nothing is evicted from; and more in all."""
    rng, found = random.Random(seed), {"hash": 0, "radix": 0}
    kinds: tuple[PrefixIndexName, ...] = ("hash", "radix")
    block_size = rng.choice([2, 4, 16])
    managers = {kind: BlockManager(2000, block_size, prefix_index=kind) for kind in kinds}
    texts: list[list[int]] = [[]]
    for _ in range(200):
        text = rng.choice(texts)
        tokens = text[: rng.randint(0, len(text))] + rng.choices([0, 1], k=rng.randint(1, 12))
        texts.append(tokens)
        num_matched = {}
        for kind, manager in managers.items():
            seq, _ = compute(manager, tokens)
            num_matched[kind] = seq.num_matched_tokens
            found[kind] += seq.num_matched_tokens
            finish(manager, seq)
            manager.check_integrity([])
        assert num_matched["radix"] >= num_matched["hash"]
        assert managers["radix"].num_free_blocks == 2000
    assert found["radix"] > found["hash"]
    assert managers["radix"].stats.evictions == 0


# ---- the audit ----


def branching_tree() -> tuple[BlockManager, RadixTree]:
    """Blocks of 2 tokens: 0 holds 1 2, 1 and 2 hold 3 4 and 3 5, 3 holds 6."""
    manager = radix_manager(num_blocks=8, block_size=2)
    for tokens in ([1, 2, 3, 4], [1, 2, 3, 5, 6]):
        seq, _ = compute(manager, tokens)
        finish(manager, seq)
    tree = manager._index
    assert isinstance(tree, RadixTree)
    assert [manager.snapshot().blocks[block].token_ids for block in range(4)] == [(1, 2), (3, 4), (3, 5), (6,)]
    manager.check_integrity([])
    return manager, tree


def node(tree: RadixTree, block: int):
    found = tree._node_of[block]
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda manager, tree: node(tree, 1).tokens.append(9), "crosses 0|crosses 1 borders of blocks, and has 1"),
        (lambda manager, tree: setattr(node(tree, 1), "key", 9), "does not fit its child 4"),
        (lambda manager, tree: setattr(node(tree, 0), "start", 1), "does not fit its child|crosses"),
        (lambda manager, tree: node(tree, 2).blocks.append(0), "and has 3 blocks"),
        (lambda manager, tree: node(tree, 1).blocks.__setitem__(0, 0), "block 0 stands twice in the radix tree"),
        (lambda manager, tree: node(tree, 2).blocks.__setitem__(0, 5), "hold .0, 1. tokens, not .2, 1."),
        (lambda manager, tree: tree._node_of.__setitem__(3, node(tree, 0)), "blocks .3. are elsewhere"),
        (lambda manager, tree: setattr(tree, "_num_registered", 3), "holds 4 blocks and counts 3"),
        (lambda manager, tree: tree._held_tokens.__setitem__(7, 1), "block 7 counts as empty, but is registered"),
        (lambda manager, tree: tree.remove(3), "block 3 waits for eviction .* but is not registered"),
        (lambda manager, tree: tree._roots.__setitem__("x", tree._roots[""]), "the root of salt 'x'"),
        (lambda manager, tree: manager._free._cached.move_to_end(0, last=False), "block 0 would be evicted before"),
    ],
)  # fmt: skip
def test_the_audit_reports_damage(damage: Callable[[BlockManager, RadixTree], object], message: str) -> None:
    manager, tree = branching_tree()
    damage(manager, tree)
    with pytest.raises(InvariantError, match=message):
        manager.check_integrity([])


def test_the_audit_notices_a_sequence_off_its_path() -> None:
    manager, _ = branching_tree()
    seq = KVSequence([1, 2, 3, 4, 5])
    assert manager.open(seq) == 4
    seq.token_ids[3] = 9
    with pytest.raises(InvariantError, match="block 1 is registered under another prefix"):
        manager.check_integrity([seq])


def test_a_tree_that_loses_its_leaves_is_empty_again() -> None:
    manager, tree = branching_tree()
    taker = KVSequence([9] * 16)
    for num_tokens in range(2, 17, 2):
        manager.grow(taker, num_tokens, num_tokens - 2)
        manager.check_integrity([taker])
    assert (len(tree), tree._roots) == (0, {})
    assert manager.stats.evictions == 4
