"""What the prefix cache gives a request, and when. Blocks of 4 tokens; r0, r1, … in the order of arrival."""

import pytest

from infra_lab.sampling_params import SamplingParams
from tests.scheduler.world import planned, small_world

ONE = SamplingParams(max_tokens=1)


def test_a_prompt_being_computed_in_the_same_step_is_no_hit_and_later_it_is() -> None:
    world = small_world(max_batched_tokens=32)
    world.add([0] * 9)
    world.add([0] * 9)
    assert planned(world.schedule()) == {"r0": 9, "r1": 9}  # 9 tokens / 4 = 2 full blocks + 1
    late = world.add([0] * 9)
    world.step()
    assert planned(world.schedule()) == {"r0": 1, "r1": 1, "r2": 1}
    assert late.num_cached == 8
    world.drain()


def test_the_computed_chunks_of_a_prompt_can_be_hit_while_the_rest_is_still_to_come() -> None:
    world = small_world(max_prefill_chunk=5)
    world.add([0] * 20)
    world.step()  # 5 of 20 tokens: 1 full block
    late = world.add([0] * 20)
    assert planned(world.schedule()) == {"r0": 5, "r1": 5}
    assert late.num_cached == 4
    world.drain()


@pytest.mark.parametrize(
    ("num_tokens", "num_cached"),
    # 12 tokens are exactly 3 blocks, and all are cached; yet the last token is computed, and with it its block.
    [(11, 8), (12, 8), (13, 12)],
)
def test_a_fully_cached_prompt_still_computes_its_last_token(num_tokens: int, num_cached: int) -> None:
    world = small_world()
    for _ in range(2):
        request = world.add(([0, 1] * 7)[:num_tokens], params=ONE)
        plan = world.schedule()
        world.step()
        world.check()
    assert request.num_cached == num_cached
    assert planned(plan) == {"r1": num_tokens - num_cached}
    assert request.finish_reason == "length"


def test_a_preempted_request_finds_its_blocks_again() -> None:
    world = small_world(num_blocks=6)
    first = world.add([0] * 8, params=SamplingParams(max_tokens=13))
    second = world.add([1] * 8, params=SamplingParams(max_tokens=9))
    while not second.num_preemptions:  # 6 blocks: both prompts take 2, both grow to 3, then one of them needs a 4th
        world.step()
        world.check()
    assert first.num_preemptions == 0
    while second not in world.running:
        world.step()
        world.check()
    assert second.num_cached >= 4
    world.drain()


def test_preempted_blocks_serve_whoever_has_the_same_prefix() -> None:
    world = small_world(max_num_seqs=1)
    low = world.add([1] * 8, priority=1)
    world.step()
    high = world.add([1] * 9)
    plan = world.schedule()
    assert (plan.preempted, plan.admitted) == ([low], [high])
    assert high.num_cached == 8
    world.drain()


def test_a_salt_keeps_prefixes_apart() -> None:
    world = small_world()
    world.add([0] * 9, params=ONE, salt="tenant")
    world.step()
    other, same = world.add([0] * 9, params=ONE), world.add([0] * 9, params=ONE, salt="tenant")
    world.step()
    assert (other.num_cached, same.num_cached) == (0, 8)


def test_after_a_reset_nothing_is_found() -> None:
    world = small_world()
    world.add([0] * 9, params=ONE)
    world.step()
    world.reset()
    late = world.add([0] * 9, params=ONE)
    world.step()
    assert late.num_cached == 0


def test_without_a_prefix_cache_everything_is_computed() -> None:
    world = small_world(enable_prefix_cache=False)
    for _ in range(2):
        request = world.add([0] * 9, params=ONE)
        assert sum(planned(world.schedule()).values()) == 9
        world.step()
    assert request.num_cached == 0
