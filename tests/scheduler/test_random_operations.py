"""Tens of thousands of random operations on tiny schedulers, against a simulated KV memory and each request's lone run."""

import random
from collections import Counter
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from infra_lab.errors import InvalidRequestError, QueueFullError
from infra_lab.sampling_params import SamplingParams
from infra_lab.scheduler.config import SchedulerConfig
from tests.scheduler.random_driver import MAX_LIVE, drive
from tests.scheduler.world import SchedulerWorld, Settings

PICKS = st.integers(0, MAX_LIVE - 1)
TOKENS = st.lists(st.sampled_from([0, 0, 0, 1]), min_size=1, max_size=14)  # prefixes collide all the time


@st.composite
def tight_settings(draw: st.DrawFn) -> Settings:
    """Limits that bind: pools from just large enough for one request, budgets from one token a seat."""
    block_size, max_model_len = draw(st.integers(1, 5)), draw(st.integers(4, 16))
    max_num_seqs, is_chunked = draw(st.integers(1, 4)), draw(st.booleans())
    max_batched_tokens = max(max_num_seqs, 0 if is_chunked else max_model_len) + draw(st.integers(0, 8))
    config = SchedulerConfig(
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        max_batched_tokens=max_batched_tokens,
        max_prefill_chunk=draw(st.none() | st.integers(1, max_batched_tokens)) if is_chunked else None,
        policy="chunked-prefill" if is_chunked else "continuous",
        num_speculative_tokens=draw(st.sampled_from([0, 0, 1, 4])),
        watermark=draw(st.sampled_from([0.0, 0.25])),
    )
    one_request = -(-(max_model_len - 1) // block_size)
    return Settings(
        config=config,
        num_blocks=one_request + draw(st.integers(0, one_request)),
        block_size=block_size,
        enable_prefix_cache=draw(st.booleans()),
    )


has_live = precondition(lambda self: self.world.live)
is_planned = precondition(lambda self: self.world.plan is not None and self.world.result is None)


class SchedulerMachine(RuleBasedStateMachine):
    """What an engine and its callers may do, in any order: hypothesis looks for one that breaks it, and shrinks it."""

    @initialize(settings=tight_settings())
    def make_world(self, settings: Settings) -> None:
        self.world = SchedulerWorld(settings)

    @precondition(lambda self: len(self.world.live) < MAX_LIVE)
    @rule(
        prompt=TOKENS,
        n=st.sampled_from([1, 1, 2, 3]),
        max_tokens=st.none() | st.integers(1, 5),
        min_tokens=st.integers(0, 1),
        priority=st.sampled_from([0, 0, 0, 1]),
        salt=st.sampled_from(["", "", "tenant"]),
        stop=st.sampled_from([(), (0,)]),
    )
    def add(
        self,
        prompt: list[int],
        n: int,
        max_tokens: int | None,
        min_tokens: int,
        priority: int,
        salt: str,
        stop: tuple[int, ...],
    ) -> None:
        params = SamplingParams(n=n, max_tokens=max_tokens, min_tokens=min_tokens)
        with suppress(InvalidRequestError, QueueFullError):
            self.world.add(prompt, params=params, priority=priority, salt=salt, stop=stop)

    @rule()
    def step(self) -> None:
        self.world.step()

    @precondition(lambda self: self.world.plan is None)
    @rule()
    def schedule(self) -> None:
        self.world.schedule()

    @is_planned
    @rule()
    def execute(self) -> None:
        self.world.execute()

    @is_planned
    @rule()
    def fail(self) -> None:
        self.world.fail()

    @has_live
    @rule(n=PICKS)
    def abort(self, n: int) -> None:
        self.world.abort(self.world.live[n % len(self.world.live)])

    @precondition(lambda self: self.world.plan is None and 0 < len(self.world.live) < MAX_LIVE)
    @rule(n=PICKS, num_children=st.integers(0, 3), num_shared=st.none() | st.integers(0, 6))
    def branch(self, n: int, num_children: int, num_shared: int | None) -> None:
        self.world.branch(self.world.live[n % len(self.world.live)], num_children, num_shared=num_shared)

    @rule(position=st.integers(0, 3))
    def bad_logits(self, position: int) -> None:
        self.world.executor.fail_positions.add(position)

    @rule()
    def reset(self) -> None:
        self.world.reset()

    @invariant()
    def everything_adds_up(self) -> None:
        self.world.check()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.drain()


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(
    max_examples=150, stateful_step_count=60, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


@pytest.mark.parametrize("seed", range(4))
def test_random_operations(seed: int) -> None:
    rng = random.Random(seed)
    seen: Counter[str] = Counter()
    for _ in range(150):
        seen += drive(rng, 150).seen
    # The driver proves something only if it gets to the rare paths too.
    for event in (
        "hit", "all cached but the last token's block", "preempt, then hit", "preempted", "preempted within its prompt",
        "preempted before its forks", "preempted for a higher priority", "copy-on-write", "fork waited for a seat",
        "chunk short of the end", "prefill and decode mixed", "budget used up", "reset", "executor failed",
        "abort, planned", "abort, parent to be", "abort, unborn fork", "ended: abort", "ended: error", "ended: stop",
        "ended: length", "refused: InvalidRequestError", "refused: QueueFullError",
        "branch: running", "branch: waiting", "all drafts kept", "no draft kept", "stopped by a draft",
    ):  # fmt: skip
        assert seen[event] >= 10, f"{event!r} happened {seen[event]} times: {seen}"


def test_the_same_operations_give_the_same_plans() -> None:
    for seed in range(30):
        first, second = (drive(random.Random(seed), 100).history for _ in range(2))
        assert first == second, f"seed {seed}"
