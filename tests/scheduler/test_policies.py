"""What each policy does with the same queue. 16 tokens a step, 4 seats, blocks of 4, unless a test says otherwise."""

import random
from collections import Counter
from dataclasses import replace
from typing import Any, Literal

import pytest

from infra_lab.errors import ConfigError
from infra_lab.sampling_params import SamplingParams
from infra_lab.scheduler.plan import StepPlan
from infra_lab.scheduler.policies import (
    POLICIES,
    BatchingPolicy,
    DeadlinePolicy,
    DynamicPolicy,
    PrefixAwarePolicy,
    PriorityPolicy,
    ShortestJobPolicy,
    StaticPolicy,
)
from infra_lab.scheduler.request import Request
from tests.scheduler.random_driver import drive
from tests.scheduler.world import SchedulerWorld, planned, small_world

ONE, FOUR, TWENTY = (SamplingParams(max_tokens=number) for number in (1, 4, 20))


def whole_world(policy: str | BatchingPolicy, **settings: Any) -> SchedulerWorld:
    """A world whose steps have room for any prompt."""
    return small_world(policy=policy, max_batched_tokens=64, **settings)


def admitted(plan: StepPlan) -> list[str]:
    return [request.request_id for request in plan.admitted]


@pytest.mark.parametrize("kv_reservation", ["paged", "whole"])
@pytest.mark.parametrize("policy", POLICIES)
def test_random_operations(policy: str, kv_reservation: Literal["paged", "whole"]) -> None:
    """Outputs are those of each request alone, blocks add up, and everybody ends, under every policy."""
    rng = random.Random(f"{policy} {kv_reservation}")
    seen: Counter[str] = Counter()
    for _ in range(25):
        seen += drive(rng, 150, policy=policy, kv_reservation=kv_reservation).seen
    assert seen["hit"], "no prefix was ever shared"
    assert seen["ended: length"], "nobody ever ended"


def test_static_batches_run_to_the_longest() -> None:
    world = whole_world(StaticPolicy(batch_size=2))
    world.add([0], params=ONE)
    world.add([1], params=FOUR)
    world.add([2], params=ONE)
    assert planned(world.schedule()) == {"r0": 1, "r1": 1}
    for _ in range(3):
        world.step()
        assert planned(world.schedule()) == {"r1": 1}, "somebody took the empty seat of a batch that runs"
    world.step()
    assert planned(world.schedule()) == {"r2": 1}
    world.add([3], params=ONE)
    world.step()
    assert planned(world.schedule()) == {"r3": 1}
    world.drain()


def test_a_static_batch_is_not_preempted_for_priority() -> None:
    world = whole_world("static", num_blocks=4)
    world.add([0] * 10, params=FOUR, priority=1)
    world.step()
    world.add([1] * 10, params=FOUR, priority=0)
    assert planned(world.schedule()) == {"r0": 1}
    world.drain()


def test_the_preempted_of_a_batch_start_the_next_one() -> None:
    world = whole_world(StaticPolicy(batch_size=2), num_blocks=5, enable_prefix_cache=False)
    for token in (0, 1):
        world.add([token] * 8, params=SamplingParams(max_tokens=5))
    world.add([2], params=ONE)
    steps = []
    while world.live:
        steps.append(set(planned(world.schedule())))
        world.step()
    assert world.seen["preempted"] == 1
    assert not any({"r0", "r2"} <= step for step in steps), "somebody joined a batch that ran"
    assert {"r1", "r2"} in steps


def test_a_dynamic_batch_waits_for_others_but_not_for_long() -> None:
    world = whole_world(DynamicPolicy(batch_size=3, max_wait_s=0.5))
    world.add([0], params=ONE, arrival_s=10.0)
    assert world.schedule(10.0).is_empty
    assert world.scheduler.held_until_s == 10.5
    world.plan = None
    world.add([1], params=ONE, arrival_s=10.2)
    assert world.schedule(10.4).is_empty
    world.plan = None
    assert planned(world.schedule(10.5)) == {"r0": 1, "r1": 1}  # the first has waited long enough
    assert world.scheduler.held_until_s is None
    world.step()
    for arrival_s in (11.0, 11.1, 11.2, 11.3):
        world.add([2], params=ONE, arrival_s=arrival_s)
    assert len(planned(world.schedule(11.3))) == 3  # full: nobody waits
    world.step()
    world.drain()


def test_in_a_long_queue_dynamic_batches_are_larger() -> None:
    policy = DynamicPolicy(batch_size=2, max_wait_s=0.0, peak_queue=4, peak_size=3, peak_wait_s=9.0)
    world = whole_world(policy)
    for _ in range(6):
        world.add([0], params=ONE, arrival_s=0.0)
    assert len(planned(world.schedule(0.0))) == 3
    world.step()
    assert len(planned(world.schedule(0.0))) == 2, "three wait, which is no peak"
    world.step()
    world.drain()


def test_prefills_first_lets_decodes_wait() -> None:
    world = whole_world("prefill-first")
    world.add([0], params=TWENTY)
    world.step()
    world.add([1] * 40, params=ONE)
    assert planned(world.schedule()) == {"r1": 40}
    world.step()
    assert planned(world.schedule()) == {"r0": 1}
    world.drain()


def test_continuous_computes_a_prompt_whole_beside_the_decodes() -> None:
    world = whole_world("continuous")
    world.add([0], params=TWENTY)
    world.step()
    world.add([1] * 40, params=ONE)
    assert planned(world.schedule()) == {"r0": 1, "r1": 40}
    world.drain()


def test_prefix_aware_takes_the_longest_hit() -> None:
    world = small_world(policy=PrefixAwarePolicy(token_s=1.0), max_num_seqs=1)
    world.add([0] * 12, params=ONE)
    world.step()
    world.add([1] * 12, params=ONE)
    world.add([0] * 4 + [1] * 8, params=ONE)
    world.add([0] * 13, params=ONE)
    order = []
    while world.live:
        order += admitted(world.schedule())
        world.step()
    assert order == ["r3", "r2", "r1"]  # hits of 12, 4 and 0 tokens


def test_priority_ages() -> None:
    world = small_world(policy=PriorityPolicy(level_s=5.0), max_num_seqs=1)
    world.add([0], params=ONE, priority=0, arrival_s=0.0)
    world.step()
    world.add([0], params=ONE, priority=1, arrival_s=1.0)
    world.add([0], params=ONE, priority=0, arrival_s=5.5)
    world.add([0], params=ONE, priority=0, arrival_s=6.5)
    order = []
    while world.live:
        order += admitted(world.schedule())
        world.step()
    assert order == ["r2", "r1", "r3"]  # 5.5, 1 + 5, 6.5


def test_priority_preempts_for_a_whole_level_only() -> None:
    world = small_world(policy=PriorityPolicy(level_s=5.0), max_num_seqs=1)
    low = world.add([0], params=TWENTY, priority=1, arrival_s=10.0)
    world.step()
    world.add([1], params=ONE, priority=0, arrival_s=10.5)
    assert not world.schedule().preempted  # 15 - 10.5 is less than a level
    world.step()
    world.add([1], params=ONE, priority=-1, arrival_s=11.0)
    assert world.schedule().preempted == [low]
    world.drain()


def test_the_shortest_job_comes_first() -> None:
    world = small_world(policy=ShortestJobPolicy(token_s=1.0), max_num_seqs=1)
    world.add([0], params=ONE)
    world.step()
    world.add([0] * 30, params=ONE, arrival_s=1.0)
    world.add([0] * 3, params=TWENTY, arrival_s=1.0)
    world.add([0] * 3, params=ONE, arrival_s=1.0)
    order = []
    while world.live:
        order += admitted(world.schedule())
        world.step()
    assert order == ["r3", "r2", "r1"]


def test_the_earliest_deadline_comes_first() -> None:
    world = small_world(policy=DeadlinePolicy(default_slo_s=2.0), max_num_seqs=1)
    world.add([0], params=ONE)
    world.step()
    world.add([0], params=ONE, arrival_s=1.0)  # due at 3
    world.add([0], params=ONE, arrival_s=1.0, deadline_s=9.0)
    world.add([0], params=ONE, arrival_s=1.5, deadline_s=2.5)
    order = []
    while world.live:
        order += admitted(world.schedule())
        world.step()
    assert order == ["r3", "r1", "r2"]


LONGEST = 60
BOUNDS_S = {
    "chunked-prefill": (BatchingPolicy(), 0.0),
    "prefix-aware": (PrefixAwarePolicy(token_s=0.1), 0.1 * LONGEST),
    "priority": (PriorityPolicy(level_s=2.0), 2.0 * 2),
    "sjf": (ShortestJobPolicy(token_s=0.1), 0.1 * LONGEST),
    "deadline": (DeadlinePolicy(default_slo_s=1.0), 4.0),
}
"""By how much later one may come and still overtake, at most."""


@pytest.mark.parametrize(("policy", "bound_s"), BOUNDS_S.values(), ids=BOUNDS_S)
def test_nobody_is_overtaken_by_those_who_come_much_later(policy: BatchingPolicy, bound_s: float) -> None:
    """One seat and an overload: the queue grows, and still everybody's turn comes within the bound."""
    rng = random.Random(policy.name)
    overtakes = 0.0
    for _ in range(10):
        world = small_world(policy=policy, max_num_seqs=1, max_batched_tokens=64)
        came_in: list[Request] = []
        for number in range(60):
            arrival_s = 0.3 * number
            world.add(
                [rng.randint(0, 2)] * rng.randint(1, LONGEST - 4),
                params=SamplingParams(max_tokens=rng.randint(1, 3)),
                arrival_s=arrival_s,
                priority=rng.randint(0, 2) if policy.name == "priority" else 0,
                deadline_s=arrival_s + rng.uniform(0.0, 4.0),
            )
            if number % 3:
                came_in += world.schedule().admitted
                world.step()
        while world.live:
            came_in += world.schedule().admitted
            world.step()
        first_time = list(dict.fromkeys(came_in))
        for place, later in enumerate(first_time):
            overtaken = [other.arrival_s for other in first_time[place + 1 :] if other.arrival_s < later.arrival_s]
            overtakes = max([overtakes, *(later.arrival_s - arrival_s for arrival_s in overtaken)])
    assert overtakes <= bound_s
    assert overtakes > 0 or not bound_s, "the policy never changed the order"


def test_reserved_whole_nobody_is_preempted() -> None:
    preemptions = {}
    reservation: Literal["paged", "whole"]
    for reservation in ("paged", "whole"):
        world = small_world(kv_reservation=reservation, num_blocks=12, enable_prefix_cache=False)
        for token in range(4):
            world.add([token % 3] * 8, params=TWENTY)
        while world.live:
            world.step()
            world.check()
        preemptions[reservation] = world.seen["preempted"]
    assert preemptions["paged"] > 0
    assert preemptions["whole"] == 0


@pytest.mark.parametrize(
    ("policy", "settings", "message"),
    [
        (StaticPolicy, {"batch_size": 0}, "batch_size of policy static is 0"),
        (DynamicPolicy, {"max_wait_s": -1.0}, "max_wait_s of policy dynamic is -1.0"),
        (DynamicPolicy, {"peak_size": 0}, "peak_size of policy dynamic is 0"),
        (PrefixAwarePolicy, {"token_s": float("nan")}, "token_s of policy prefix-aware is nan"),
        (PrefixAwarePolicy, {"window": 0}, "window of policy prefix-aware is 0"),
        (PriorityPolicy, {"level_s": float("inf")}, "level_s of policy priority is inf"),
    ],
)
def test_impossible_settings(policy: type[BatchingPolicy], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(policy(), **settings)
