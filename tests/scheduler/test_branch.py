"""A request ends and others go on from its tokens, as the beams of a search do. Blocks of 4 tokens, 4 seats."""

from infra_lab.sampling_params import SamplingParams
from infra_lab.scheduler.request import Request, Status
from tests.scheduler.world import SchedulerWorld, planned, small_world

LONG = SamplingParams(max_tokens=20)


def computed(world: SchedulerWorld, prompt: int) -> Request:
    """A request whose prompt is computed, and nothing more."""
    request = world.add([0] * prompt, params=LONG)
    world.step()
    assert request.num_computed == prompt
    return request


def test_children_share_all_that_was_computed() -> None:
    world = small_world()
    parent = computed(world, 10)  # 10 tokens / 4 = 2 full blocks + 2
    held = list(parent.block_table)
    children = world.branch(parent, 3)
    world.check()
    assert all(child.block_table == held for child in children)
    assert world.blocks.num_blocks - world.blocks.num_free_blocks == 3
    assert children[0].request_id == parent.request_id
    plan = world.schedule()
    assert planned(plan) == {child.request_id: 1 for child in children}
    assert len(plan.copies) == 2, "of three who write to the third block, two get a copy and the last one the block"
    assert len({block for child in children for block in child.block_table}) == 2 + 3
    world.drain()


def test_at_the_border_of_a_block_nothing_is_copied() -> None:
    world = small_world()
    children = world.branch(computed(world, 8), 3)
    plan = world.schedule()
    assert not plan.copies
    assert len({block for child in children for block in child.block_table}) == 2 + 3
    world.drain()


def test_an_only_child_goes_on_in_the_parents_blocks() -> None:
    world = small_world()
    parent = computed(world, 6)
    held = list(parent.block_table)
    (child,) = world.branch(parent, 1)
    plan = world.schedule()
    assert not plan.copies
    assert child.block_table == held
    world.drain()


def test_without_children_it_is_an_end() -> None:
    world = small_world()
    parent = computed(world, 6)
    assert world.branch(parent, 0) == []
    assert parent.finish_reason == "branched"
    assert not world.scheduler.has_work
    world.drain()


def test_a_child_may_share_less_than_all() -> None:
    world = small_world()
    (child,) = world.branch(computed(world, 10), 1, num_shared=5)
    assert len(child.block_table) == 2
    world.drain()


def test_those_without_a_seat_wait_and_find_the_prefix_in_the_cache() -> None:
    world = small_world(max_num_seqs=2)
    children = world.branch(computed(world, 9), 3)
    assert [child.status for child in children] == [Status.RUNNING, Status.RUNNING, Status.WAITING]
    while children[2] in world.waiting:
        world.step()
        world.check()
    assert children[2].num_cached == 8
    world.drain()


def test_the_children_of_a_parent_that_has_ended_wait() -> None:
    world = small_world()
    parent = computed(world, 9)
    world.abort(parent)
    children = world.branch(parent, 2)
    assert parent.finish_reason == "abort"
    assert [child.status for child in children] == [Status.WAITING] * 2
    world.drain()
