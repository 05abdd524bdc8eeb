"""Who goes when blocks, seats or tokens are short, and that nothing is lost. Blocks of 4 tokens, 4 seats."""

from infra_lab.sampling_params import SamplingParams
from infra_lab.scheduler.request import Status
from tests.scheduler.world import planned, small_world


def tokens(max_tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens)


def test_the_least_urgent_goes_and_comes_back_with_its_tokens() -> None:
    world = small_world(num_blocks=5, enable_prefix_cache=False)
    first, second = world.add([0] * 7, params=tokens(12)), world.add([1] * 7, params=tokens(12))
    while not second.num_preemptions:  # both hold 2 blocks and need a third; there are 5
        world.step()
        world.check()
    output = second.output_token_ids
    assert output
    assert second.status is Status.WAITING
    world.drain()
    assert second.output_token_ids[: len(output)] == output
    assert first.num_preemptions == 0


def test_preempted_in_the_middle_of_a_prompt() -> None:
    world = small_world(num_blocks=6, max_prefill_chunk=4)
    world.add([0] * 3, params=tokens(20))
    long = world.add([1] * 20, params=tokens(2))
    while not long.num_preemptions:  # 2 blocks for the first one's 5 tokens, 4 for 16 of the 20
        world.step()
        world.check()
    assert long.num_output_tokens == 0
    assert world.seen["preempted within its prompt"] == 1
    world.drain()


def test_nobody_comes_in_while_blocks_are_short() -> None:
    world = small_world(num_blocks=4)
    world.add([0] * 8, params=tokens(8))
    second = world.add([1] * 8, params=tokens(8))
    world.step()
    small = world.add([0], params=tokens(1))
    plan = world.schedule()
    assert plan.preempted == [second]
    assert not plan.admitted
    assert small in world.waiting
    world.drain()


def test_the_watermark_is_kept_from_those_who_wait() -> None:
    world = small_world(num_blocks=10, watermark=0.25, max_batched_tokens=64)  # keeps 2 blocks
    three, four, two = (world.add([0, token] * size, params=tokens(1)) for token, size in ((0, 6), (1, 8), (2, 4)))
    assert world.schedule().admitted == [three, four]  # 10 - 3 - 4 = 3 free, and two would leave 1
    world.step()
    assert world.schedule().admitted == [two]
    world.drain()


def test_the_watermark_keeps_nothing_when_there_is_nobody_to_protect() -> None:
    world = small_world(num_blocks=4, watermark=0.9)
    world.add([0] * 16, params=tokens(1))
    assert planned(world.schedule()) == {"r0": 16}
    world.drain()


def test_higher_priority_takes_a_seat() -> None:
    world = small_world(max_num_seqs=2)
    low = [world.add([0], params=tokens(20), priority=1) for _ in range(2)]
    world.step()
    high = world.add([1], params=tokens(3))
    plan = world.schedule()
    assert (plan.preempted, plan.admitted) == ([low[1]], [high])
    world.drain()


def test_equal_priority_takes_nothing() -> None:
    world = small_world(max_num_seqs=2)
    for _ in range(2):
        world.add([0], params=tokens(8))
    world.step()
    late = world.add([1], params=tokens(3), arrival_s=-1.0)  # earlier by the clock, and still no reason to preempt
    plan = world.schedule()
    assert not plan.preempted
    assert late in world.waiting
    world.drain()


def test_higher_priority_takes_the_budget_of_a_long_prompt() -> None:
    """A prompt of low priority once took whole steps, to its end, before a higher priority came in."""
    world = small_world()
    world.add([0] * 60, params=tokens(1), priority=1)
    world.step()
    world.add([1] * 20, params=tokens(1))
    assert planned(world.schedule()) == {"r0": 1, "r1": 15}
    world.step()
    assert planned(world.schedule()) == {"r1": 5, "r0": 11}
    world.drain()


def test_higher_priority_with_a_cached_prompt_gets_the_blocks_that_it_needs() -> None:
    """Its cached blocks once counted as room for it, and as what it needs no more, so nobody was preempted."""
    world = small_world(num_blocks=8, max_prefill_chunk=4)
    world.add([0] * 17, params=tokens(1))
    while world.live:  # leaves 4 cached blocks of 4
        world.step()
    low = world.add([1] * 9, params=tokens(8), priority=1)
    for _ in range(3):
        world.step()  # 3 blocks; 5 are free, 4 of these the cached ones
    low_2 = world.add([1] * 3, params=tokens(2), priority=1)
    world.step()  # the last empty block
    high = world.add([0] * 18, params=tokens(1))
    plan = world.schedule()
    assert plan.admitted == [high]
    assert high.num_cached == 16
    assert plan.preempted == [low_2]
    assert low.num_preemptions == 0
    world.drain()


def test_abort_of_the_preempted() -> None:
    world = small_world(max_num_seqs=1)
    low = world.add([0], params=tokens(20), priority=1)
    world.step()
    world.add([1], params=tokens(3))
    assert world.schedule().preempted == [low]
    world.abort(low)
    world.check()
    world.drain()
    assert low.num_output_tokens == 1
