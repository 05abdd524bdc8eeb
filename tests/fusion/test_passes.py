"""Fused kernels can run one after the other, compute what was computed, and move as little as they say."""

import random
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infra_lab.fusion.block import BlockShape, DecoderBlock, block_inputs
from infra_lab.fusion.compare import record_block
from infra_lab.fusion.launches import Recording, record
from infra_lab.fusion.passes import LEVELS, Kernel, Level, fuse
from tests.fusion.layers import DECODE, PREFILL, SMALL


def program(seed: int) -> Recording:
    """A random straight line of operations on [8, 8] tensors, some of them returned."""
    rng = random.Random(seed)

    def run(*inputs: torch.Tensor) -> list[torch.Tensor]:
        values = list(inputs)
        for _ in range(rng.randint(1, 12)):
            a, b = rng.choice(values), rng.choice(values)
            choices: list[Any] = [
                lambda a=a, b=b: a + b,
                lambda a=a, b=b: a * b,
                lambda a=a: a.neg(),
                lambda a=a: a.softmax(-1),
                lambda a=a, b=b: a @ b,
                lambda a=a, b=b: torch.bmm(a[None], b[None])[0],
                lambda a=a: a.transpose(0, 1),
            ]
            values.append(rng.choice(choices)())
        return [values[-1], rng.choice(values)]

    inputs = [torch.empty(8, 8, device="meta") for _ in range(2)]
    return record(run, inputs, weights=(), cache=())


def assert_sound(recording: Recording, kernels: tuple[Kernel, ...]) -> None:
    """Every launch is in one kernel, and each kernel finds in memory what it reads."""
    names = [launch.name for kernel in kernels for launch in kernel.launches]
    assert sorted(names) == sorted(launch.name for launch in recording.launches)
    made = {access.buffer for launch in recording.launches for access in launch.writes}
    in_memory = set(range(len(recording.buffer_bytes))) - made
    for kernel in kernels:
        assert {access.buffer for access in kernel.reads} <= in_memory, "a kernel waits for a later one"
        own = {access.buffer for access in kernel.reads}
        for launch in kernel.launches:
            assert {access.buffer for access in launch.reads} <= own, "a launch runs before its input is made"
            own |= {access.buffer for access in launch.writes}
        in_memory |= {access.buffer for access in kernel.writes}
    assert recording.results <= in_memory, "a result is not written"


@given(st.integers(0, 10**9), st.sampled_from(LEVELS))
@settings(max_examples=150, deadline=None)
def test_random_programs_stay_sound(seed: int, level: Level) -> None:
    recording = program(seed)
    kernels = fuse(recording, level)
    assert_sound(recording, kernels)
    assert sum(kernel.num_bytes for kernel in kernels) <= sum(k.num_bytes for k in fuse(recording, "nothing"))
    assert sum(kernel.flops for kernel in kernels) == sum(launch.flops for launch in recording.launches)


@pytest.mark.parametrize("shape", [DECODE, PREFILL, BlockShape(3, 5, 9)], ids=str)
def test_each_level_starts_and_moves_less(shape: BlockShape) -> None:
    recording = record_block(SMALL, shape)
    by_level = [fuse(recording, level) for level in LEVELS]
    for kernels in by_level:
        assert_sound(recording, kernels)
    for before, after in pairwise(by_level):
        assert len(after) < len(before)
        assert sum(kernel.num_bytes for kernel in after) < sum(kernel.num_bytes for kernel in before)
    for kernels in by_level:  # no fusion spares a weight
        assert sum(kernel.bytes_of("weight") for kernel in kernels) == sum(
            weight.nbytes for weight in DecoderBlock(SMALL).parameters()
        )


def test_one_kernel_reads_the_inputs_and_writes_the_results() -> None:
    inputs = block_inputs(SMALL, DECODE)
    outputs = DecoderBlock(SMALL)(*inputs)
    weights = sum(weight.nbytes for weight in DecoderBlock(SMALL).parameters())
    whole = sum(tensor.nbytes for tensor in (*inputs, *outputs))
    (kernel,) = fuse(record_block(SMALL, DECODE), "everything")
    assert kernel.num_bytes == weights + whole


def test_a_kernel_never_waits_for_itself() -> None:
    """The residual is read before the product and after it: the adds must stay apart."""

    def residual(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        y = x + 1
        return y + (y * 2) @ w

    recording = record(residual, [torch.empty(8, 8, device="meta")] * 2, weights=(), cache=())
    names = [[launch.name for launch in kernel.launches] for kernel in fuse(recording, "reductions")]
    assert names == [["add_0", "mul_0"], ["mm_0"], ["add_1"]]


def test_what_is_known_of_norm_gate_and_softmax() -> None:
    """By hand: at 24 tokens of 64 columns in bfloat16, x and the sum are read and written once, the gate three times."""
    tokens, hidden, inner = 24, 64, 96
    kernels = {kernel.launches[0].name: kernel for kernel in fuse(record_block(SMALL, PREFILL), "reductions")}
    add_norm = next(kernel for kernel in kernels.values() if any(one.name == "pow_1" for one in kernel.launches))
    assert add_norm.bytes_of("activation") == 4 * tokens * hidden * 2  # x, attention's output; the sum, the norm
    assert kernels["silu_0"].bytes_of("activation") == 3 * tokens * inner * 2
    softmax = next(kernel for kernel in kernels.values() if any(one.name == "_softmax_0" for one in kernel.launches))
    scores = 4 * tokens * tokens * 2
    assert softmax.bytes_of("activation") == 2 * scores + tokens * tokens * 2  # scores and weights, the mask
