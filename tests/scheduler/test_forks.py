"""`n` > 1: the other samples of a prompt are born when it is computed. Blocks of 4 tokens, 4 seats."""

from infra_lab.sampling_params import SamplingParams
from infra_lab.scheduler.request import Request, Status
from tests.scheduler.oracle import alone
from tests.scheduler.world import SchedulerWorld, planned, small_world


def params(n: int, max_tokens: int = 6) -> SamplingParams:
    return SamplingParams(n=n, max_tokens=max_tokens)


def add_samples(world: SchedulerWorld, n: int, prompt: int = 6, **options: int) -> list[Request]:
    parent = world.add([0] * prompt, params=params(n, options.pop("max_tokens", 6)), **options)
    return [parent, *parent.forks]


def test_samples_share_the_prompt_and_differ_from_its_end_on() -> None:
    world = small_world()
    samples = add_samples(world, 3)
    assert planned(world.schedule()) == {"r0": 6}
    world.step()
    # 6 tokens / 4 = 1 full block, which all share, + 2; each fork copies the second one before it writes.
    plan = world.schedule()
    assert planned(plan) == {"r0": 1, "r0#1": 1, "r0#2": 1}
    assert len(plan.copies) == 2
    assert len({request.block_table[0] for request in samples}) == 1
    assert len({request.block_table[1] for request in samples}) == 3
    world.drain()
    assert [sample.output_token_ids for sample in samples] == [alone(sample, 64).token_ids for sample in samples]
    assert len({tuple(sample.output_token_ids) for sample in samples}) == 3


def test_one_token_each_the_parent_ends_before_its_forks_run() -> None:
    world = small_world()
    samples = add_samples(world, 3, max_tokens=1)
    assert world.step() == samples[:1]
    world.check()
    plan = world.schedule()
    assert planned(plan) == {"r0#1": 1, "r0#2": 1}
    assert len(plan.copies) == 1  # the last one that refers to the block writes in place
    world.drain()


def test_a_prompt_of_whole_blocks_is_shared_but_for_its_last_block() -> None:
    world = small_world()
    samples = add_samples(world, 2, prompt=8)
    world.step()
    plan = world.schedule()
    assert len(plan.copies) == 1  # the fork computes token 7 again, and its block is registered and shared
    assert samples[0].block_table[:1] == samples[1].block_table[:1]
    world.drain()


def test_a_fork_without_a_seat_waits_and_finds_the_prompt_in_the_cache() -> None:
    world = small_world(max_num_seqs=2)
    other = world.add([1], params=params(1, 9))
    samples = add_samples(world, 2)
    world.step()
    assert world.waiting == samples[1:]
    while samples[1] in world.waiting:
        world.step()
        world.check()
    assert samples[0].is_finished
    assert not other.is_finished
    assert samples[1].num_cached == 4
    world.drain()


def test_forks_under_block_pressure() -> None:
    world = small_world(num_blocks=4)  # one request takes 3 blocks: 6 + 6 - 1 = 11 tokens
    samples = add_samples(world, 3)
    world.drain()
    assert sum(sample.num_preemptions for sample in samples) > 0
    assert samples[0].num_preemptions == 0
    assert world.seen["ended: length"] == 3


def test_abort_of_a_parent_ends_the_forks_that_it_has_not_had() -> None:
    for num_steps in (0, 1):  # waiting; in the middle of its prompt
        world = small_world(max_prefill_chunk=4)
        samples = add_samples(world, 3)
        for _ in range(num_steps):
            world.step()
        world.abort(samples[0])
        world.check()
        assert [sample.finish_reason for sample in samples] == ["abort"] * 3
        assert not world.scheduler.has_work
        world.drain()


def test_abort_of_a_parent_leaves_those_alone_that_are_born() -> None:
    world = small_world()
    samples = add_samples(world, 3)
    world.step()
    world.abort(samples[0])
    world.drain()
    assert [sample.finish_reason for sample in samples] == ["abort", "length", "length"]


def test_abort_of_a_fork_before_it_is_born() -> None:
    """A bug once: it counted as leaving the queue, in which it never was, and was born all the same."""
    for n_steps in (0, 1):
        world = small_world(max_prefill_chunk=4)
        samples = add_samples(world, 3)
        for _ in range(n_steps):
            world.step()
        world.abort(samples[1])
        world.check()
        world.drain()
        assert [sample.finish_reason for sample in samples] == ["length", "abort", "length"]


def test_a_preempted_parent_keeps_its_unborn_forks() -> None:
    world = small_world(num_blocks=4, max_prefill_chunk=4)
    samples = add_samples(world, 2, prompt=11, max_tokens=2, priority=1)
    world.step()
    assert samples[0].num_computed == 4
    world.add([1] * 12, params=params(1, 2))  # priority 0, and needs all 4 blocks in the end
    while not samples[0].num_preemptions:
        world.step()
        world.check()
    assert samples[0].forks == samples[1:]
    assert samples[1].status is Status.WAITING
    world.drain()
    assert world.seen["preempted before its forks"] == 1


def test_bad_logits_at_the_prompts_end_end_the_unborn_forks_too() -> None:
    world = small_world()
    samples = add_samples(world, 3)
    world.executor.fail_positions.add(0)
    assert world.step() == samples[:1]
    world.check()
    assert [sample.finish_reason for sample in samples] == ["error"] * 3
