"""Plans made one step ahead: random operations against the simulated memory, while a step is always under way."""

import random
from collections import Counter
from dataclasses import replace
from typing import Literal

import pytest

from infra_lab.sampling_params import SamplingParams
from infra_lab.scheduler.plan import StepPlan
from infra_lab.scheduler.policies import POLICIES
from infra_lab.scheduler.request import Request
from infra_lab.scheduler.scheduler import Scheduler
from tests.scheduler.random_driver import WEIGHTS, apply, random_settings
from tests.scheduler.step_rules import THESE_HOLD
from tests.scheduler.world import SchedulerWorld, planned, small_world

GARBAGE = ("half-written", ())
OVERLAPPED = {name: weight for name, weight in WEIGHTS.items() if name not in ("schedule", "execute", "branch")}


class OverlappedWorld(SchedulerWorld):
    """The loop of an engine whose steps overlap. Between two calls `plan` is launched, and `result` is what will come of it."""

    num_steps_without_an_end = 0

    def step(self) -> list[Request]:
        if self.plan is None and not self._launch(self.scheduler.schedule(1e9)):
            assert not self.live, "nothing is planned, and somebody waits"
            return []
        ahead = self._plan_ahead()
        ended = self.update()
        self._launch(ahead)
        self.num_steps_without_an_end = 0 if ended else self.num_steps_without_an_end + 1
        limit = 4 * self.config.max_model_len + 2  # twice as many as where a step is planned after the other
        assert self.num_steps_without_an_end <= limit, f"nobody has ended in {limit} steps"
        return ended

    def fail(self) -> None:
        """What the step wrote is garbage, and the next one is planned already."""
        assert self.plan is not None, "fail() without a plan"
        for request, start, num_tokens in self.plan.chunks:
            for position in range(start, start + num_tokens):
                if position < len(request.block_table) * self.blocks.block_size:
                    block = request.block_table[position // self.blocks.block_size]
                    self.executor.memory[block][position % self.blocks.block_size] = GARBAGE
        ahead = self._plan_ahead()
        super().fail()
        self._launch(ahead)

    def _plan_ahead(self) -> StepPlan:
        assert self.plan is not None, "ahead of nothing"
        running, under_way = self.running, {chunk.request for chunk in self.plan.chunks}
        self.scheduler.expect(self.plan)
        ahead = self.scheduler.schedule(1e9)
        moves = under_way | {chunk.request for chunk in ahead.chunks} | set(ahead.preempted)
        if self.scheduler.policy.name in THESE_HOLD:
            assert moves.issuperset(running), "somebody runs, and gets no token in two steps"
        self.seen["ahead"] += 1
        self.seen["preempted under way"] += bool(under_way & set(ahead.preempted))
        self.seen["back at once"] += bool(under_way & set(ahead.preempted) & set(ahead.admitted))
        self.seen["nothing to do ahead"] += ahead.is_empty
        return ahead

    def _launch(self, plan: StepPlan) -> bool:
        left = plan.without_finished()
        self.seen["left the plan"] += len(plan.chunks) - len(left.chunks)
        if left.is_empty:
            return False
        self.plan = left
        self.execute()
        return True


def drive(
    rng: random.Random,
    num_operations: int,
    scheduler_class: type[Scheduler] = Scheduler,
    *,
    policy: str | None = None,
    kv_reservation: Literal["paged", "whole"] = "paged",
) -> OverlappedWorld:
    tight = random_settings(rng, policy, kv_reservation)
    world = OverlappedWorld(replace(tight, config=replace(tight.config, num_speculative_tokens=0)), scheduler_class)
    for operation in rng.choices(list(OVERLAPPED), list(OVERLAPPED.values()), k=num_operations):
        if operation == "fail":
            if world.plan is not None:
                world.fail()
        else:
            apply(operation, world, rng)
        world.check()
    world.drain()
    return world


@pytest.mark.parametrize("seed", range(3))
def test_random_operations(seed: int) -> None:
    rng = random.Random(seed)
    seen: Counter[str] = Counter()
    for _ in range(120):
        seen += drive(rng, 150).seen
    for event in (
        "ahead", "left the plan", "preempted under way", "back at once", "nothing to do ahead", "executor failed",
        "abort, planned", "abort, parent to be", "ended: error", "ended: stop", "ended: length",
    ):  # fmt: skip
        assert seen[event] >= 3, f"{event!r} happened {seen[event]} times: {seen}"


@pytest.mark.parametrize("kv_reservation", ["paged", "whole"])
@pytest.mark.parametrize("policy", list(POLICIES))
def test_every_policy(policy: str, kv_reservation: Literal["paged", "whole"]) -> None:
    rng = random.Random(0)
    for _ in range(25):
        drive(rng, 100, policy=policy, kv_reservation=kv_reservation)


def test_a_decode_is_planned_before_its_token_is_known() -> None:
    world = small_world()
    for max_tokens in (2, 9):
        world.add([1] * 12, params=SamplingParams(max_tokens=max_tokens))
    assert planned(world.schedule()) == {"r0": 12, "r1": 4}
    world.execute()
    assert world.plan is not None
    world.scheduler.expect(world.plan)
    ahead = world.scheduler.schedule()
    assert planned(ahead) == {"r0": 1, "r1": 8}, "a token that is sampled now, and more of a prompt"
    world.update()
    world.plan = ahead
    world.execute()
    world.scheduler.expect(ahead)
    assert planned(world.scheduler.schedule()) == {"r1": 1}, "with what is sampled now r0 has ended"


class TakesWhatWasComputedBeforePreemption(Scheduler):
    def schedule(self, now_s: float = 0.0) -> StepPlan:
        plan = super().schedule(now_s)
        for request in plan.admitted:
            request.first_step = -1
        return plan


class GoesOnBeforeItForks(Scheduler):
    def schedule(self, now_s: float = 0.0) -> StepPlan:
        forks = {request: request.forks for request in self.running}
        for request in forks:
            request.forks = []
        try:
            return super().schedule(now_s)
        finally:
            for request, kept in forks.items():
                request.forks = kept


class GoesOnPastItsLimit(Scheduler):
    """Wants a block for a token that never comes: one who is preempted for it loses the last token again and again."""

    def schedule(self, now_s: float = 0.0) -> StepPlan:
        for request in self.running:
            request.max_total_tokens += 1
        try:
            return super().schedule(now_s)
        finally:
            for request in self.requests.values():
                request.max_total_tokens = min(
                    request.num_prompt_tokens + (request.params.max_tokens or self.config.max_model_len),
                    self.config.max_model_len,
                )


class RegistersWhatIsUnderWay(Scheduler):
    def schedule(self, now_s: float = 0.0) -> StepPlan:
        for request in self.running:
            self.blocks.commit(request, min(request.num_computed + request.num_in_flight, len(request.token_ids)))
        return super().schedule(now_s)


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        (TakesWhatWasComputedBeforePreemption, "goes on at|holds|has nothing"),
        (GoesOnBeforeItForks, "owners"),
        (GoesOnPastItsLimit, "nobody has ended"),
        (RegistersWhatIsUnderWay, "half-written"),
    ],
)
def test_planted_bugs_are_seen(broken: type[Scheduler], complaint: str) -> None:
    with pytest.raises(AssertionError, match=complaint):
        _drive_often(broken)


def _drive_often(scheduler_class: type[Scheduler]) -> None:
    rng = random.Random(1)
    for _ in range(400):
        drive(rng, 120, scheduler_class)
