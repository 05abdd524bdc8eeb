"""Random operations from a plain generator: no shrinking, but many more a second than a stateful machine."""

import random
from collections import Counter
from collections.abc import Collection

from infra_lab.paged_kv.block_manager import BlockManager, PrefixIndexName
from tests.paged_kv.kv_world import CHECKS, KVWorld

MAX_LIVE = 6
WEIGHTS = {  # so that caches fill up and stay full
    "add": 8.0, "plan": 8.0, "plan_all_and_step": 12.0, "step": 6.0, "sample": 10.0,
    "fork": 16.0, "preempt": 3.0, "resume": 4.0, "finish": 14.0, "reset": 0.3, "fail": 1.0,
}  # fmt: skip


def drive(
    rng: random.Random,
    num_operations: int,
    manager_class: type[BlockManager] = BlockManager,
    checks: Collection[str] = CHECKS,
    prefix_index: PrefixIndexName = "hash",
) -> Counter[str]:
    """Run random operations on a tiny cache, then drain it; return how often what happened, as the model saw it."""
    world = KVWorld(rng.randint(2, 12), rng.choice([1, 2, 2, 3, 4]), manager_class, checks, prefix_index)
    for operation in rng.choices(list(WEIGHTS), list(WEIGHTS.values()), k=num_operations):
        apply(operation, world, rng)
        world.check()
    world.drain()
    return world.model.seen if world.model else Counter()


def tokens(rng: random.Random, max_tokens: int) -> list[int]:
    """Mostly zeros: prefixes collide all the time, and yet differ somewhere."""
    return rng.choices([0, 1], [4, 1], k=rng.randint(1, max_tokens))


def apply(operation: str, world: KVWorld, rng: random.Random) -> None:
    seq = rng.choice(world.live) if world.live else None
    has_room = len(world.live) < MAX_LIVE
    if operation == "add" and has_room:
        world.add(tokens(rng, 14), rng.choice(["", "", "", "tenant"]))
    elif operation == "plan_all_and_step":
        world.plan_all_and_step(rng.choice([1, 2, 5, 100]))
    elif operation == "step":
        world.step()
    elif operation in ("reset", "fail"):
        getattr(world, operation)()
    elif operation == "plan" and seq:
        world.plan(seq, rng.randint(1, 8))
    elif operation == "sample" and seq:
        world.sample(seq, *tokens(rng, 1))
    elif operation == "fork" and seq and has_room:
        world.fork(seq, rng.randint(0, 3), tokens(rng, 4))
    elif operation in ("preempt", "resume", "finish") and seq:
        getattr(world, operation)(seq)
