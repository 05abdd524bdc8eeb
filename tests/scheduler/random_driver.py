"""Random operations from a plain generator: no shrinking, but many more a second than a stateful machine."""

import random
from contextlib import suppress
from typing import Literal

from infra_lab.errors import InvalidRequestError, QueueFullError
from infra_lab.paged_kv.block_manager import BlockManager
from infra_lab.sampling_params import SamplingParams
from infra_lab.scheduler.config import SchedulerConfig
from infra_lab.scheduler.policies import POLICIES
from infra_lab.scheduler.scheduler import Scheduler
from tests.scheduler.world import SchedulerWorld, Settings

MAX_LIVE = 10
WEIGHTS = {
    "add": 10.0, "step": 24.0, "schedule": 6.0, "execute": 3.0,
    "abort": 3.0, "stop_string": 1.0, "branch": 3.0, "fail": 0.4, "bad_logits": 0.6, "reset": 0.3,
}  # fmt: skip


def drive(
    rng: random.Random,
    num_operations: int,
    scheduler_class: type[Scheduler] = Scheduler,
    manager_class: type[BlockManager] = BlockManager,
    *,
    policy: str | None = None,
    kv_reservation: Literal["paged", "whole"] = "paged",
) -> SchedulerWorld:
    """Run random operations on a tiny scheduler, then drain it; return it, with what was seen and planned.

    Without a policy, chunked prefill, or now and then whole prompts.
    """
    settings = random_settings(rng, policy, kv_reservation)
    world = SchedulerWorld(settings, scheduler_class, manager_class)
    for operation in rng.choices(list(WEIGHTS), list(WEIGHTS.values()), k=num_operations):
        apply(operation, world, rng)
        world.check()
    world.drain()
    return world


def random_settings(
    rng: random.Random, policy: str | None = None, kv_reservation: Literal["paged", "whole"] = "paged"
) -> Settings:
    """Limits that bind: pools from just large enough for one request, budgets from one token a seat."""
    block_size = rng.choice([1, 2, 3, 4, 5])
    max_model_len = rng.randint(6, 24)
    one_request = -(-(max_model_len - 1) // block_size)
    max_num_seqs = rng.randint(1, 6)
    policy = policy or ("chunked-prefill" if rng.random() < 0.8 else "continuous")
    is_chunked = POLICIES[policy].chunks_prompts
    least_budget = max_num_seqs if is_chunked else max(max_num_seqs, max_model_len)
    max_batched_tokens = least_budget + rng.choice([0, 0, 1, 2, 5, 16])
    is_capped = is_chunked and rng.random() < 0.5
    config = SchedulerConfig(
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        max_batched_tokens=max_batched_tokens,
        max_prefill_chunk=rng.randint(1, max_batched_tokens) if is_capped else None,
        policy=policy,
        kv_reservation=kv_reservation,
        num_speculative_tokens=rng.choice([0, 2, 4]),
        max_waiting=rng.choice([None, None, 1, 3]),
        watermark=rng.choice([0.0, 0.01, 0.1, 0.3]),
    )
    num_blocks = max(1, one_request + rng.choice([-1, 0, 0, 0, 1, 2, one_request, 3 * one_request]))
    return Settings(config=config, num_blocks=num_blocks, block_size=block_size, enable_prefix_cache=rng.random() < 0.8)


def apply(operation: str, world: SchedulerWorld, rng: random.Random) -> None:
    if operation == "add":
        if len(world.live) < MAX_LIVE:
            add(world, rng)
    elif operation == "step":
        world.step()
    elif operation == "schedule" and world.plan is None:
        world.schedule()
    elif operation == "execute" and world.plan is not None and world.result is None:
        world.execute()
    elif operation == "fail" and world.plan is not None and world.result is None:
        world.fail()
    elif operation == "abort" and world.everyone:
        world.abort(rng.choice(world.live if world.live and rng.random() < 0.9 else world.everyone))
    elif operation == "stop_string":
        texts = [request for request in world.running if request.num_output_tokens]
        if texts:
            world.stop_string(rng.choice(texts))
    elif operation == "branch" and world.plan is None and world.everyone and len(world.live) < MAX_LIVE:
        parents = world.running if world.running and rng.random() < 0.9 else world.everyone
        num_shared = None if rng.random() < 0.8 else rng.randint(0, 8)
        world.branch(rng.choice(parents), rng.choice([0, 1, 1, 2, 3]), num_shared=num_shared)
    elif operation == "bad_logits":
        world.executor.fail_positions.add(rng.randint(0, 3))
    elif operation == "reset":
        world.reset()


def add(world: SchedulerWorld, rng: random.Random) -> None:
    """Add a request that collides with others: the same prompts, borders of blocks, the same seeds, an id in use."""
    max_tokens = rng.choice([None, 1, 1, 2, 3, 5, 8])
    params = SamplingParams(
        n=rng.choice([1, 1, 1, 1, 2, 3]),
        max_tokens=max_tokens,
        min_tokens=rng.randint(0, min(max_tokens or 4, 4)),
    )
    with suppress(InvalidRequestError, QueueFullError):  # the world has checked that it was deserved
        world.add(
            random_prompt(world, rng),
            params=params,
            priority=rng.choice([0, 0, 0, 0, 1, 2]),
            salt=rng.choice(["", "", "", "tenant"]),
            stop=rng.choice([(), (), (0,), (1, 2)]),
            seed=rng.randint(0, 1),
            arrival_s=len(world.everyone) - rng.choice([0.0, 0.0, 0.0, 5.0]),
            request_id=rng.choice(world.everyone).request_id if world.everyone and rng.random() < 0.03 else None,
        )


def random_prompt(world: SchedulerWorld, rng: random.Random) -> list[int]:
    """Mostly zeros, mostly of a length next to a block's border; or what another request has come to."""
    longest, block_size = world.config.max_model_len - 1, world.blocks.block_size
    if world.everyone and rng.random() < 0.2:
        return rng.choice(world.everyone).token_ids[:longest]
    if rng.random() < 0.02:
        return [0] * rng.choice([0, longest + 1, longest + 5])
    length = rng.randint(1, longest)
    if rng.random() < 0.6:
        length = block_size * rng.randint(1, max(1, longest // block_size)) + rng.choice([-1, 0, 0, 1])
    return rng.choices([0, 1], [6, 1], k=min(max(length, 1), longest))
