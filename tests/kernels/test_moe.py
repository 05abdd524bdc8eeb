"""A mixture of experts against float64: token by token, choice by choice."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kernels
from kernels.moe import grouped_config, grouped_matmul, moe, moe_block_size, moe_combine, moe_reference
from kernels.moe_align import moe_align
from tests.kernels.conftest import DEVICE, assert_close, poisoned

DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
MODES = st.sampled_from(["triton", "reference"])


def randn(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(DEVICE)


def choices(T: int, top_k: int, low: int, high: int, seed: int) -> torch.Tensor:
    return torch.randint(low, high, (T, top_k), generator=torch.Generator().manual_seed(seed)).to(DEVICE)


@settings(max_examples=50, deadline=None)
@given(
    st.integers(0, 30), st.integers(1, 3), st.integers(1, 6), st.integers(0, 80), st.integers(1, 150), DTYPES,
    st.sampled_from([16, 32]), st.booleans(), MODES, st.integers(0, 2**31),
)  # fmt: skip
def test_grouped_products(
    T: int, top_k: int, num_experts: int, N: int, K: int, dtype: torch.dtype, block_size: int, has_gaps: bool,
    mode: kernels.dispatch.Mode, seed: int,
) -> None:  # fmt: skip
    wide = torch.full((T, K + 5), float("nan"), dtype=dtype, device=DEVICE)
    x = wide[:, :K] if has_gaps else wide.view(-1)[: T * K].view(T, K)
    x.copy_(randn((T, K), dtype, seed))
    weight, ids = randn((num_experts, N, K), dtype, seed + 1), choices(T, top_k, 0, num_experts, seed + 2)
    with poisoned(), kernels.use(mode):
        y = grouped_matmul(x, weight, *moe_align(ids, num_experts, block_size), top_k)
    expected = torch.zeros((T * top_k, N), dtype=torch.float64, device=DEVICE)
    for slot, expert in enumerate(ids.flatten().tolist()):
        expected[slot] = (weight[expert].double() * x[slot // top_k].double()).sum(1)
    assert_close(y, expected, ulps=2, slack=2e-6 * K)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 9), st.integers(1, 4), st.integers(0, 200), DTYPES, MODES, st.integers(0, 2**31))
def test_combining(T: int, top_k: int, H: int, dtype: torch.dtype, mode: kernels.dispatch.Mode, seed: int) -> None:
    y, weights = randn((T * top_k, H), dtype, seed), randn((T, top_k), torch.float32, seed + 1)
    ids = choices(T, top_k, -1, 4, seed + 2)  # of three experts; -1 and 3 are another GPU's
    expected = torch.zeros((T, H), dtype=torch.float64, device=DEVICE)
    largest = 0.0
    for token in range(T):
        for j in range(top_k):
            if 0 <= ids[token, j] < 3:
                term = weights[token, j].double() * y[token * top_k + j].double()
                expected[token] += term
                largest = max(largest, float(term.abs().max()) if H else 0.0)
            else:
                y[token * top_k + j] = float("nan")  # what torch.empty may well hold
    with poisoned(), kernels.use(mode):
        result = moe_combine(y, ids, weights, 3)
    assert_close(result, expected, ulps=1, slack=1e-6 * largest)


@pytest.mark.parametrize("T", [0, 1, 5, 40])
@pytest.mark.parametrize(("low", "high"), [(0, 6), (-1, 9)])
def test_a_layer_of_experts(T: int, low: int, high: int) -> None:
    x, gate_up, down = (
        randn((T, 48), torch.float32, 0),
        randn((6, 64, 48), torch.float32, 1),
        randn((6, 48, 32), torch.float32, 2),
    )
    ids, weights = choices(T, 2, low, high, 3), randn((T, 2), torch.float32, 4)
    expected = torch.zeros((T, 48), dtype=torch.float64, device=DEVICE)
    for token in range(T):
        for expert, share in zip(ids[token].tolist(), weights[token].double(), strict=True):
            if 0 <= expert < 6:
                gate, up = (gate_up[expert].double() @ x[token].double()).chunk(2)
                expected[token] += share * (down[expert].double() @ (gate / (1 + torch.exp(-gate)) * up))
    with torch.no_grad(), poisoned():
        assert_close(moe(x, gate_up, down, ids, weights), expected, ulps=1000)
    assert_close(moe_reference(x, gate_up, down, ids, weights), expected, ulps=1000)


def test_blocks_grow_with_the_tokens_of_an_expert() -> None:
    sizes = [moe_block_size(slots, 128) for slots in (0, 8, 2048, 2049, 8192, 65_536)]
    assert sizes == [16, 16, 16, 16, 64, 128]
    assert [grouped_config(size).blocks["BLOCK_M"] for size in (16, 32, 64, 128)] == [16, 32, 64, 128]


def test_what_does_not_fit_together_is_refused() -> None:
    x, weight = torch.ones((2, 3), device=DEVICE), torch.ones((2, 4, 3), device=DEVICE)
    ids, weights = torch.zeros((2, 1), dtype=torch.int64, device=DEVICE), torch.ones((2, 1), device=DEVICE)
    aligned = moe_align(ids, 2, 16)
    with pytest.raises(ValueError, match=r"\[R, K\] and \[E, N, K\]"):
        grouped_matmul(x, weight[0], *aligned, 1)
    with pytest.raises(ValueError, match="must be of one dtype"):
        grouped_matmul(x.half(), weight, *aligned, 1)
    with pytest.raises(ValueError, match="blocks must be of one size"):
        grouped_matmul(x, weight, aligned.slots[:-1], aligned.block_experts, 1)
    with pytest.raises(ValueError, match="blocks have 8 slots"):
        grouped_matmul(x, weight, *moe_align(ids, 2, 8), 1)
    with pytest.raises(ValueError, match=r"they must be \[T·k, H\]"):
        moe_combine(x, ids, weights[:1], 2)
    with pytest.raises(ValueError, match="compute no gradients"):
        grouped_matmul(x.requires_grad_(), weight, *aligned, 1)


def test_torch_compile_sees_a_node_each() -> None:
    x, weight = torch.ones((2, 3), device=DEVICE), torch.ones((2, 4, 3), device=DEVICE)
    ids, weights = torch.zeros((2, 1), dtype=torch.int64, device=DEVICE), torch.ones((2, 1), device=DEVICE)
    torch.library.opcheck(torch.ops.infra_lab.grouped_matmul.default, (x, weight, *moe_align(ids, 2, 16), 1))
    torch.library.opcheck(torch.ops.infra_lab.moe_combine.default, (x, ids, weights, 2))
