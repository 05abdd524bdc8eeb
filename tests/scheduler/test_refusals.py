"""Requests and settings that cannot work are refused at once, with the numbers, and nothing is left of them."""

from typing import Any

import pytest

from infra_lab.errors import ConfigError, InvalidRequestError, QueueFullError
from infra_lab.sampling_params import SamplingParams
from infra_lab.scheduler.config import SchedulerConfig
from infra_lab.scheduler.request import Request
from tests.scheduler.world import SchedulerWorld, small_world


def assert_untouched(world: SchedulerWorld) -> None:
    world.check()
    assert not world.scheduler.has_work
    assert world.schedule().is_empty


@pytest.mark.parametrize(
    ("prompt", "params", "limits", "message"),
    [
        ([], {}, {}, "the prompt has no tokens"),
        ([0] * 64, {}, {}, r"the prompt has 64 tokens.*context of 64"),
        ([0] * 65, {}, {}, r"the prompt has 65 tokens.*context of 64"),
        # 9 + 8 - 1 = 16 tokens / 4 = 4 blocks; one more token needs a fifth.
        ([0] * 9, {"max_tokens": 9}, {"num_blocks": 4}, r"17 tokens.*5 blocks of 4.*has 4"),
        ([0], {"max_tokens": None}, {"num_blocks": 4}, r"63 tokens.*16 blocks of 4.*has 4"),
        ([0], {"n": 5}, {}, r"n = 5 samples.*max_num_seqs is 4"),
    ],
)  # fmt: skip
def test_what_can_never_be_served(
    prompt: list[int], params: dict[str, Any], limits: dict[str, Any], message: str
) -> None:
    world = small_world(**limits)
    with pytest.raises(InvalidRequestError, match=message):
        world.add(prompt, params=SamplingParams(**params))
    assert_untouched(world)


def test_what_just_fits() -> None:
    world = small_world(num_blocks=4)
    world.add([0] * 9, params=SamplingParams(max_tokens=8))  # 16 tokens are stored, the 17th is only sampled
    world.drain()
    assert world.seen["ended: length"] == 1
    world = small_world()
    world.add([0] * 63, params=SamplingParams(max_tokens=None))
    world.drain()
    assert world.everyone[0].num_output_tokens == 1


def test_an_id_in_use() -> None:
    world = small_world()
    world.add([0], request_id="a")
    with pytest.raises(InvalidRequestError, match="'a' is in use"):
        world.add([1], request_id="a")
    world.add([0], request_id="b", params=SamplingParams(n=2, max_tokens=2))
    with pytest.raises(InvalidRequestError, match="'b#1' is in use"):
        world.add([0], request_id="b#1")
    world.drain()
    world.add([1], request_id="a")  # free again
    world.drain()


def test_one_id_for_two_samples() -> None:
    world, params = small_world(), SamplingParams(n=2)
    parent, fork = (Request(token_ids=[0], request_id="a", params=params) for _ in range(2))
    parent.forks = [fork]
    with pytest.raises(InvalidRequestError, match="'a' is in use"):
        world.scheduler.add(parent)
    assert_untouched(world)


def test_a_full_queue_refuses_until_somebody_leaves() -> None:
    world = small_world(max_waiting=2)
    first = world.add([0])
    world.add([0])
    with pytest.raises(QueueFullError, match="2 requests wait already, and max_waiting is 2"):
        world.add([0])
    world.abort(first)
    world.check()
    world.add([0])
    world.schedule()  # two seats taken, nobody waits
    world.add([0])
    world.drain()


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_model_len": 0}, "max_model_len is 0"),
        ({"max_num_seqs": 0}, "max_num_seqs is 0"),
        ({"max_batched_tokens": 0}, "max_batched_tokens is 0"),
        ({"max_num_seqs": 17}, "max_num_seqs = 17 requests .* max_batched_tokens is 16"),
        ({"max_prefill_chunk": 0}, "max_prefill_chunk is 0; .* max_batched_tokens = 16"),
        ({"max_prefill_chunk": 17}, "max_prefill_chunk is 17; .* max_batched_tokens = 16"),
        ({"policy": "continuous"}, "max_model_len = 64 tokens .* max_batched_tokens is 16"),
        (
            {"policy": "static", "max_batched_tokens": 64, "max_prefill_chunk": 8},
            "max_prefill_chunk is 8, but policy static computes a prompt whole",
        ),
        (
            {"policy": "fifo"},
            "unknown policy 'fifo'; known: static, dynamic, prefill-first, continuous, chunked-prefill",
        ),
        ({"kv_reservation": "all"}, "kv_reservation is 'all'"),
        ({"max_waiting": 0}, "max_waiting is 0"),
        ({"watermark": 1.0}, "watermark is 1.0"),
        ({"watermark": -0.1}, "watermark is -0.1"),
        ({"watermark": float("nan")}, "watermark is nan"),
    ],
)
def test_limits_that_contradict_each_other(limits: dict[str, Any], message: str) -> None:
    defaults = {"max_model_len": 64, "max_num_seqs": 4, "max_batched_tokens": 16}
    with pytest.raises(ConfigError, match=message):
        SchedulerConfig(**{**defaults, **limits})


def test_the_tightest_limits_that_work() -> None:
    ones = ("num_blocks", "block_size", "max_num_seqs", "max_batched_tokens", "max_prefill_chunk", "max_waiting")
    world = small_world(max_model_len=2, **dict.fromkeys(ones, 1))
    world.add([0], params=SamplingParams(max_tokens=None))
    world.drain()
    assert world.seen["ended: length"] == 1
