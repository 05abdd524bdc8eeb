"""The matrix product in all its variants against float64: any strides, odd sizes, every epilogue; and the plans."""

from math import erf

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kernels
from kernels.matmul import launch_matmul, matmul
from kernels.matmul_plan import MatmulPlan, num_tiles, plan_matmul
from kernels.operands import num_multiprocessors
from kernels.spec import KernelConfig
from tests.kernels.conftest import DEVICE, assert_close, poisoned

SMALL = KernelConfig({"BLOCK_M": 16, "BLOCK_N": 32, "BLOCK_K": 16, "GROUP": 2}, 4, 2)
PLANS = {
    "plain": MatmulPlan("plain", SMALL),
    "persistent": MatmulPlan("persistent", SMALL),
    "split_k": MatmulPlan("split_k", SMALL, split=3),
}
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
SIZES = st.tuples(st.integers(0, 70), st.integers(0, 100), st.integers(0, 70))
LAYOUTS = st.sampled_from(["rows", "columns", "apart", "gaps"])
H200 = 132


def matrix(shape: tuple[int, int], dtype: torch.dtype, layout: str, seed: int) -> torch.Tensor:
    """Random values; "rows" and "columns" are contiguous one way or the other, the others have NaN between rows or elements."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(DEVICE)
    if layout == "columns":
        return values.t().contiguous().t()
    if layout == "apart":
        wide = torch.full((shape[0], shape[1] + 5), float("nan"), dtype=dtype, device=DEVICE)
        wide[:, : shape[1]] = values
        return wide[:, : shape[1]]
    if layout == "gaps":
        wide = torch.full((shape[0], 2 * shape[1] + 3), float("nan"), dtype=dtype, device=DEVICE)
        wide[:, : 2 * shape[1] : 2] = values
        return wide[:, : 2 * shape[1] : 2]
    return values


def exact(
    a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None, activation: str, residual: torch.Tensor | None
) -> torch.Tensor:
    c = (a.double().unsqueeze(2) * b.double()).sum(1)  # [M, K, 1] · [K, N]
    c = c if bias is None else c + bias.double()
    if activation == "silu":
        c = c / (1 + torch.exp(-c))
    if activation == "gelu":
        c = c / 2 * (1 + c.cpu().mul(0.5**0.5).apply_(erf).to(c.device))
    return c if residual is None else c + residual.double()


@settings(max_examples=100, deadline=None)
@given(
    SIZES, DTYPES, st.sampled_from(list(PLANS)), LAYOUTS, LAYOUTS, st.booleans(),
    st.sampled_from(["none", "silu", "gelu"]), st.booleans(),
    st.integers(0, 2**31),
)  # fmt: skip
def test_every_variant(
    sizes: tuple[int, int, int], dtype: torch.dtype, variant: str, a_layout: str, b_layout: str, has_bias: bool,
    activation: str, has_residual: bool, seed: int,
) -> None:  # fmt: skip
    M, N, K = sizes
    a, b = matrix((M, K), dtype, a_layout, seed), matrix((K, N), dtype, b_layout, seed + 1)
    bias = matrix((1, N), dtype, a_layout, seed + 2)[0] if has_bias else None
    residual = matrix((M, N), dtype, b_layout, seed + 3) if has_residual else None
    with poisoned():
        c = launch_matmul(PLANS[variant], a, b, bias, activation, residual)
    assert c.dtype == dtype
    assert c.is_contiguous()
    assert_close(c, exact(a, b, bias, activation, residual), ulps=2, slack=1e-5 * K**0.5)


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from([8, 16, 64]), st.integers(1, 100), st.integers(1, 40), st.booleans(), st.sampled_from([16, 128]),
    st.integers(0, 2**31),
)  # fmt: skip
def test_tiles_that_the_copy_engine_takes(K: int, N: int, M: int, transposed: bool, tile: int, seed: int) -> None:
    N = N if transposed else -(-N // 8) * 8  # rows at multiples of 16 bytes
    a, b = (
        matrix((M, K), torch.bfloat16, "rows", seed),
        matrix((K, N), torch.bfloat16, "columns" if transposed else "rows", seed),
    )
    config = KernelConfig({"BLOCK_M": tile, "BLOCK_N": 2 * tile, "BLOCK_K": 16, "GROUP": 2}, 4, 2)
    with poisoned():
        c = launch_matmul(MatmulPlan("persistent", config), a, b, None, "none", None)
    assert_close(c, exact(a, b, None, "none", None), ulps=2)


def test_a_product_as_a_model_calls_it() -> None:
    x, weight = matrix((3, 600), torch.float32, "rows", 0), matrix((20, 600), torch.float32, "rows", 1)
    with poisoned():
        c = matmul(x, weight.t())
    assert_close(c, exact(x, weight.t(), None, "none", None), ulps=64)
    with kernels.use("reference"):
        assert_close(matmul(x, weight.t()), exact(x, weight.t(), None, "none", None), ulps=64)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
@pytest.mark.parametrize("value", [1e4, -1e4, 88.0, -88.0])
@pytest.mark.parametrize("activation", ["silu", "gelu"])
def test_activations_far_out(value: float, activation: str) -> None:
    a, b = torch.full((1, 1), value, device=DEVICE), torch.ones(1, 1, device=DEVICE)
    assert_close(matmul(a, b, activation=activation), exact(a, b, None, activation, None), slack=1e-30)


@given(st.integers(0, 20_000), st.integers(1, 160_000), st.integers(0, 20_000), st.sampled_from([1, 80, 108, 132, 148]))
def test_a_plan_covers_the_product_and_does_not_waste_it(M: int, N: int, K: int, multiprocessors: int) -> None:
    plan = plan_matmul(M, N, K, multiprocessors)
    assert plan.config.blocks["BLOCK_M"] < max(2 * M, 32), "more than half of each tile is padding"
    assert (plan.split > 1) == (plan.variant == "split_k")
    if plan.split > 1:
        assert num_tiles(plan.config, M, N) * plan.split <= 2 * multiprocessors
        assert K // plan.split >= 512


@pytest.mark.parametrize(
    ("M", "N", "K", "variant", "rows", "split"),
    [
        (8192, 8192, 8192, "persistent", 128, 1),  # 64 · 32 tiles of 128 × 256 = 15.5 waves
        (4096, 4096, 4096, "persistent", 128, 1),
        (1, 4096, 14336, "split_k", 16, 4),  # 64 tiles · 4 = 256 of 264 programs
        (16, 152_064, 4096, "plain", 16, 1),  # 2376 tiles: enough without a split
        (64, 1024, 4096, "split_k", 64, 8),  # 16 tiles · 8 = 128 of 132
        (64, 1024, 576, "plain", 16, 1),  # too short a sum to cut
    ],
)
def test_plans_for_an_h200(M: int, N: int, K: int, variant: str, rows: int, split: int) -> None:
    plan = plan_matmul(M, N, K, H200)
    assert (plan.variant, plan.config.blocks["BLOCK_M"], plan.split) == (variant, rows, split)


def test_a_run_in_the_interpreter_has_several_waves() -> None:
    assert num_multiprocessors(DEVICE) < num_tiles(SMALL, 70, 100)


def test_what_does_not_fit_together_is_refused() -> None:
    a, b = torch.ones(2, 3, device=DEVICE), torch.ones(3, 4, device=DEVICE)
    with pytest.raises(ValueError, match=r"must be \[M, K\] and \[K, N\]"):
        matmul(a, b.t())
    with pytest.raises(ValueError, match="both must be one of"):
        matmul(a, b.half())
    with pytest.raises(ValueError, match=r"bias is \[3\]; it must be \[4\]"):
        matmul(a, b, torch.ones(3, device=DEVICE))
    with pytest.raises(ValueError, match=r"residual is \[4\]; it must be \[2, 4\]"):
        matmul(a, b, residual=torch.ones(4, device=DEVICE))
    with pytest.raises(ValueError, match="activation is 'relu'"):
        matmul(a, b, activation="relu")
    with pytest.raises(ValueError, match="compute no gradients"):
        matmul(a.requires_grad_(), b)


def test_torch_compile_sees_one_node() -> None:
    a, b = torch.ones(2, 3, device=DEVICE), torch.ones(3, 4, device=DEVICE)
    torch.library.opcheck(torch.ops.infra_lab.matmul.default, (a, b, None, "none", None))
