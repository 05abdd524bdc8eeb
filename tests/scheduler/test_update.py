"""What `update`, `abort` and `finish` make of a step's result, and of what happened while it ran."""

from infra_lab.sampling_params import SamplingParams
from infra_lab.scheduler.plan import NO_TOKEN, StepResult
from tests.scheduler.world import planned, small_world

TWENTY = SamplingParams(max_tokens=20)


def test_abort_while_the_step_runs() -> None:
    world = small_world()
    gone, stays = world.add([0] * 5, params=TWENTY), world.add([1] * 5, params=TWENTY)
    world.schedule()
    world.execute()
    world.abort(gone)
    assert world.update() == []
    world.check()
    assert gone.num_output_tokens == 0
    assert stays.num_output_tokens == 1
    world.drain()


def test_abort_then_the_same_id_again_while_the_step_runs() -> None:
    world = small_world()
    old = world.add([0] * 5, params=TWENTY, request_id="a")
    world.schedule()
    world.abort(old)
    new = world.add([1] * 5, params=TWENTY, request_id="a")
    world.step()
    world.check()
    assert (old.num_output_tokens, new.num_output_tokens) == (0, 0)
    assert planned(world.schedule()) == {"a": 5}
    world.drain()


def test_bad_logits_end_one_request() -> None:
    world = small_world()
    bad, good = world.add([0], params=TWENTY), world.add([1], params=TWENTY)
    world.executor.fail_positions.add(0)
    assert world.step() == [bad]
    assert bad.finish_reason == "error"
    assert good.num_output_tokens == 1
    world.drain()


def test_bad_logits_of_a_request_that_was_aborted_meanwhile() -> None:
    """`update` once said that it had finished it."""
    world = small_world()
    request = world.add([0], params=TWENTY)
    plan = world.schedule()
    world.scheduler.abort(request.request_id)
    assert world.scheduler.update(plan, StepResult([NO_TOKEN], errors={0: "not finite"})) == []
    assert request.finish_reason == "abort"


def test_an_executor_that_raises_harms_nobody_outside_its_step() -> None:
    world = small_world(max_num_seqs=1)
    first, second = world.add([0] * 5, params=TWENTY), world.add([0] * 5, params=TWENTY)
    world.schedule()
    world.fail()
    world.check()
    assert first.finish_reason == "error"
    world.drain()
    assert second.finish_reason == "length"
    assert second.num_cached == 0  # nothing of the failed step was registered


def test_the_same_plan_may_be_executed_again() -> None:
    world = small_world()
    world.add([0] * 6, params=SamplingParams(n=2, max_tokens=5))
    world.step()
    assert world.schedule().copies
    world.execute()
    world.execute()
    world.drain()


def test_a_stop_string_ends_a_request_after_update() -> None:
    world = small_world()
    request = world.add([0], params=TWENTY)
    for _ in range(3):
        world.step()
    world.stop_string(request)
    world.check()
    assert (request.finish_reason, request.num_output_tokens) == ("stop", 3)
    world.drain()


def test_stop_tokens_count_from_min_tokens_on() -> None:
    for min_tokens in range(5):
        world = small_world()
        request = world.add([0], params=SamplingParams(max_tokens=20, min_tokens=min_tokens), stop=(0, 1, 2))
        world.drain()
        assert (request.finish_reason, request.num_output_tokens) == ("stop", max(1, min_tokens))


def test_the_context_ends_a_request_without_max_tokens() -> None:
    world = small_world(max_model_len=10)
    request = world.add([0] * 4, params=SamplingParams(max_tokens=None))
    world.drain()
    assert (request.finish_reason, len(request.token_ids)) == ("length", 10)


def test_abort_of_whom_nobody_knows() -> None:
    world = small_world()
    assert not world.scheduler.abort("nobody")
    request = world.add([0], params=SamplingParams(max_tokens=1))
    world.drain()
    assert not world.scheduler.abort(request.request_id)
    assert request.finish_reason == "length"
