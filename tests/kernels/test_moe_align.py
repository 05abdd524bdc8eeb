"""Tokens sorted by expert, against the definition: every slot once, in order, in blocks of one expert."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kernels
from kernels.moe_align import moe_align, num_blocks
from tests.kernels.conftest import DEVICE, poisoned


def check_alignment(expert_ids: torch.Tensor, num_experts: int, block_size: int) -> None:
    with poisoned():
        slots, block_experts = moe_align(expert_ids.to(DEVICE), num_experts, block_size)
    ids, num_slots = expert_ids.flatten().tolist(), expert_ids.numel()
    expected_slots: list[int] = []
    expected_experts: list[int] = []
    for expert in range(num_experts):
        mine = [slot for slot, to in enumerate(ids) if to == expert]
        blocks = (len(mine) + block_size - 1) // block_size
        expected_slots += mine + [num_slots] * (blocks * block_size - len(mine))
        expected_experts += [expert] * blocks
    assert len(expected_experts) <= len(block_experts), "no room for all blocks"
    assert slots.tolist() == expected_slots + [num_slots] * (len(slots) - len(expected_slots))
    assert block_experts.tolist() == expected_experts + [-1] * (len(block_experts) - len(expected_experts))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 60), st.integers(1, 4), st.integers(1, 40), st.sampled_from([1, 4, 16]), st.booleans(),
    st.sampled_from([torch.int32, torch.int64]), st.sampled_from(["triton", "reference"]), st.integers(0, 2**31),
)  # fmt: skip
def test_every_slot_once(
    T: int, k: int, num_experts: int, block_size: int, elsewhere: bool, dtype: torch.dtype, mode: kernels.dispatch.Mode,
    seed: int,
) -> None:  # fmt: skip
    low, high = (-2, num_experts + 3) if elsewhere else (0, num_experts)  # some experts are another GPU's
    ids = torch.randint(low, high, (T, k), generator=torch.Generator().manual_seed(seed), dtype=dtype)
    with kernels.use(mode):
        check_alignment(ids, num_experts, block_size)


@pytest.mark.parametrize("num_experts", [1, 3, 64])
def test_several_chunks(num_experts: int) -> None:
    ids = torch.randint(
        0, num_experts, (1500, 2), generator=torch.Generator().manual_seed(0)
    )  # 3000 slots = 2 chunks + 952
    check_alignment(ids, num_experts, 64)


def test_more_chunks_than_a_step_takes() -> None:
    ids = torch.randint(
        0, 5, (17_000, 2), generator=torch.Generator().manual_seed(0)
    )  # 34,000 slots: 34 chunks, 32 a step
    check_alignment(ids, 5, 128)


def test_the_picture() -> None:
    slots, block_experts = moe_align(torch.tensor([[2, 0], [1, 0], [3, 0]], device=DEVICE), 3, 2)
    assert slots.tolist() == [1, 3, 5, 6, 2, 6, 0, 6]
    assert block_experts.tolist() == [0, 0, 1, 2]


@given(st.integers(0, 40), st.integers(1, 8), st.integers(1, 8))
def test_the_room_is_what_the_worst_case_takes(num_slots: int, num_experts: int, block_size: int) -> None:
    # As many slots as fit go to expert 0; the others get one each.
    alone = min(num_experts, num_slots) - 1 if num_slots else 0
    first = num_slots - alone
    worst = (first + block_size - 1) // block_size + alone if num_slots else 0
    assert num_blocks(num_slots, num_experts, block_size) >= worst
    assert num_blocks(num_slots, num_experts, block_size) * block_size <= num_slots + num_experts * (block_size - 1)


def test_what_cannot_be_aligned_is_refused() -> None:
    ids = torch.zeros((2, 2), dtype=torch.int64, device=DEVICE)
    with pytest.raises(ValueError, match="must be int32 or int64"):
        moe_align(ids.float(), 2, 16)
    with pytest.raises(ValueError, match="must be int32 or int64"):
        moe_align(ids[0], 2, 16)
    with pytest.raises(ValueError, match="there are 513 experts"):
        moe_align(ids, 513, 16)


def test_torch_compile_sees_one_node() -> None:
    ids = torch.zeros((2, 2), dtype=torch.int64, device=DEVICE)
    torch.library.opcheck(torch.ops.infra_lab._moe_align.default, (ids, 3, 16))
