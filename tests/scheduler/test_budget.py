"""How the tokens of a step are shared out. 16 tokens a step, 4 seats, blocks of 4."""

from infra_lab.sampling_params import SamplingParams
from tests.scheduler.world import planned, small_world

ONE, TWENTY = SamplingParams(max_tokens=1), SamplingParams(max_tokens=20)


def test_a_long_prompt_and_a_short_one_behind_it() -> None:
    whole = small_world()
    capped = small_world(max_prefill_chunk=8)
    for world in (whole, capped):
        world.add([0] * 40)
        world.add([1] * 3)
    assert planned(whole.schedule()) == {"r0": 16}
    assert planned(capped.schedule()) == {"r0": 8, "r1": 3}
    for world in (whole, capped):
        world.drain()


def test_decodes_and_prefills_share_a_step() -> None:
    world = small_world()
    world.add([0], params=TWENTY)
    world.add([1], params=TWENTY)
    world.step()
    world.add([0] * 30, params=ONE)
    assert planned(world.schedule()) == {"r0": 1, "r1": 1, "r2": 14}
    world.step()
    assert planned(world.schedule()) == {"r0": 1, "r1": 1, "r2": 14}
    world.step()
    assert planned(world.schedule()) == {"r0": 1, "r1": 1, "r2": 2}
    world.drain()


def test_no_decode_waits_for_a_more_urgent_prompt() -> None:
    """An unfinished prompt once took all that was left, before less urgent requests got their one token."""
    world = small_world()
    world.add([0], params=TWENTY, priority=1)
    world.step()
    world.add([1] * 40, params=ONE, priority=0)
    assert planned(world.schedule()) == {"r0": 1, "r1": 15}
    world.step()
    assert planned(world.schedule()) == {"r0": 1, "r1": 15}
    world.drain()


def test_each_that_runs_gets_a_token_from_the_smallest_budget() -> None:
    world = small_world(max_batched_tokens=4)
    for token in range(2):
        world.add([token] * 6, params=TWENTY)
    plans = [planned(world.schedule())]
    for _ in range(3):
        world.step()
        plans.append(planned(world.schedule()))
    assert plans == [{"r0": 4}, {"r0": 2, "r1": 2}, {"r0": 1, "r1": 3}, {"r0": 1, "r1": 1}]
    world.drain()


def test_whole_prompts_wait_until_they_fit_into_one_step() -> None:
    world = small_world(policy="continuous", max_batched_tokens=64)
    world.add([0] * 40)
    world.add([1] * 30)
    assert planned(world.schedule()) == {"r0": 40}
    world.step()
    assert planned(world.schedule()) == {"r0": 1, "r1": 30}
    world.drain()


def test_nobody_overtakes_the_head_of_the_queue() -> None:
    world = small_world(num_blocks=7)
    world.add([0] * 13, params=SamplingParams(max_tokens=4))  # 4 blocks; the next one's first chunk would need as many
    world.step()
    large, small = world.add([1] * 20, params=ONE), world.add([0], params=ONE)
    assert not world.schedule().admitted
    assert world.waiting == [large, small]
    world.drain()


def test_the_smallest_requests_fill_the_seats() -> None:
    world = small_world()
    for _ in range(5):
        world.add([0], params=ONE)
    assert planned(world.schedule()) == {"r0": 1, "r1": 1, "r2": 1, "r3": 1}
    world.drain()


def test_nothing_to_do_is_an_empty_plan() -> None:
    world = small_world()
    assert world.schedule().is_empty
    assert world.step() == []
