"""Tens of thousands of random operations in tiny caches, against a simulated KV memory and a brute-force model."""

import random
from collections import Counter

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from infra_lab.paged_kv.block_manager import PrefixIndexName
from tests.paged_kv.kv_world import KVWorld, LiveSequence
from tests.paged_kv.random_driver import MAX_LIVE, drive

# Few tokens, mostly the same, and two salts: prefixes collide all the time.
TOKENS = st.sampled_from([0, 0, 0, 1])
PICKS = st.integers(0, MAX_LIVE - 1)
has_live = precondition(lambda self: self.world.live)


class BlockManagerMachine(RuleBasedStateMachine):
    """What a scheduler may do, in any order: hypothesis looks for an order that breaks it, and shrinks it."""

    prefix_index: PrefixIndexName = "hash"

    @initialize(num_blocks=st.integers(2, 12), block_size=st.integers(1, 4))
    def make_world(self, num_blocks: int, block_size: int) -> None:
        self.world = KVWorld(num_blocks, block_size, prefix_index=self.prefix_index)

    def pick(self, n: int) -> LiveSequence:
        return self.world.live[n % len(self.world.live)]

    @precondition(lambda self: len(self.world.live) < MAX_LIVE)
    @rule(tokens=st.lists(TOKENS, min_size=1, max_size=14), salt=st.sampled_from(["", "", "", "tenant"]))
    def add(self, tokens: list[int], salt: str) -> None:
        self.world.add(tokens, salt)

    @has_live
    @rule(n=PICKS, num_tokens=st.integers(1, 8))
    def plan(self, n: int, num_tokens: int) -> None:
        self.world.plan(self.pick(n), num_tokens)

    @has_live
    @rule(num_tokens=st.sampled_from([1, 2, 5, 100]))
    def plan_all_and_step(self, num_tokens: int) -> None:
        self.world.plan_all_and_step(num_tokens)

    @rule()
    def step(self) -> None:
        self.world.step()

    @has_live
    @rule(n=PICKS, token=TOKENS)
    def sample(self, n: int, token: int) -> None:
        self.world.sample(self.pick(n), token)

    @precondition(lambda self: 0 < len(self.world.live) < MAX_LIVE)
    @rule(n=PICKS, num_back=st.integers(0, 3), more_tokens=st.lists(TOKENS, min_size=1, max_size=4))
    def fork(self, n: int, num_back: int, more_tokens: list[int]) -> None:
        self.world.fork(self.pick(n), num_back, more_tokens)

    @has_live
    @rule(n=PICKS)
    def preempt(self, n: int) -> None:
        self.world.preempt(self.pick(n))

    @has_live
    @rule(n=PICKS)
    def resume(self, n: int) -> None:
        self.world.resume(self.pick(n))

    @has_live
    @rule(n=PICKS)
    def finish(self, n: int) -> None:
        self.world.finish(self.pick(n))

    @rule()
    def fail(self) -> None:
        self.world.fail()

    @rule()
    def reset(self) -> None:
        self.world.reset()

    @invariant()
    def everything_adds_up(self) -> None:
        self.world.check()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.drain()


class RadixMachine(BlockManagerMachine):
    prefix_index: PrefixIndexName = "radix"


TestBlockManagerMachine, TestRadixMachine = BlockManagerMachine.TestCase, RadixMachine.TestCase
TestBlockManagerMachine.settings = TestRadixMachine.settings = settings(
    max_examples=300, stateful_step_count=80, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)

# The drivers prove something only if they get to the rare paths too.
EVENTS = [
    "hit", "miss", "evicted", "no room", "copy-on-write", "reopened", "duplicate",
    "fork, partial block", "fork, whole blocks", "reset",
]  # fmt: skip
RADIX_EVENTS = [
    "hit within a block", "hit of a whole tail", "copy of a cached block",
    "tail", "tail grew", "tail replaced", "tail continued in place",
]  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_random_operations(seed: int, prefix_index: PrefixIndexName) -> None:
    rng = random.Random(seed)
    seen: Counter[str] = Counter()
    for _ in range(100):
        seen += drive(rng, 200, prefix_index=prefix_index)
    for event in EVENTS + RADIX_EVENTS * (prefix_index == "radix"):
        assert seen[event] >= 10, f"{event!r} happened {seen[event]} times: {seen}"
