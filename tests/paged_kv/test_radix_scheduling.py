"""Random requests through a scheduler whose prefix cache is a radix tree, with the same oracle as for hashes."""

import random
from collections import Counter
from typing import Any

import pytest

from infra_lab.paged_kv.block_manager import BlockManager
from infra_lab.scheduler.policies import POLICIES
from infra_lab.scheduler.scheduler import Scheduler
from tests.scheduler.random_driver import drive
from tests.scheduler.world import planned, small_world


class RadixManager(BlockManager):
    def __init__(self, *sizes: int, **settings: Any) -> None:
        super().__init__(*sizes, prefix_index="radix", **settings)


class DropsTheCopiesOfAdmission(Scheduler):
    """What the scheduler did when `open` found whole blocks only."""

    def _admit_waiting(self, *arguments: Any) -> int:
        copies = list(arguments[0].copies)
        budget = super()._admit_waiting(*arguments)
        arguments[0].copies[:] = copies
        return budget


@pytest.mark.parametrize("policy", POLICIES)
def test_random_requests_come_to_what_they_come_to_alone(policy: str) -> None:
    seen: Counter[str] = Counter()
    for seed in range(25):
        seen += drive(random.Random(seed), 150, manager_class=RadixManager, policy=policy).seen
    for event in ("hit", "copy-on-write", "ended: length", "ended: abort"):
        assert seen[event] >= 10, f"{event!r} happened {seen[event]} times: {seen}"


def test_a_scheduler_that_drops_the_copies_is_caught() -> None:
    def drive_often() -> None:
        for seed in range(300):
            drive(random.Random(seed), 150, DropsTheCopiesOfAdmission, RadixManager)

    with pytest.raises(AssertionError, match=r"block \d+ holds"):
        drive_often()


def test_the_copy_of_an_admission_is_in_the_plan() -> None:
    world = small_world()
    world.blocks = world.scheduler.blocks = RadixManager(32, 4)
    world.add([0, 0, 0, 0, 0, 0, 1, 1])
    world.step()
    late = world.add([0, 0, 0, 0, 0, 0, 2, 2, 2])
    plan = world.schedule()
    assert (late.num_cached, planned(plan)["r1"]) == (6, 3)  # 6 tokens / 4 = 1 full block + 2
    assert [copy.destination for copy in plan.copies] == [late.block_table[1]]
    world.drain()


def test_a_request_that_needs_the_whole_pool_comes_in() -> None:
    world = small_world(num_blocks=3)
    world.blocks = world.scheduler.blocks = RadixManager(3, 4)
    world.add([0] * 9)
    world.step()
    world.drain()
    world.add([0] * 6 + [1] * 3)
    world.step()
    world.drain()
