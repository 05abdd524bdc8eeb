"""Products of int8 and FP8 matrices against float64: sums to the last unit, any layout, odd sizes, extreme values."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kernels
from kernels.quantized_matmul import FP8, launch_scaled_matmul, scaled_config, scaled_matmul
from kernels.spec import KernelConfig
from tests.kernels.conftest import DEVICE, assert_close, poisoned

SIZES = st.tuples(st.integers(0, 40), st.integers(0, 70), st.integers(0, 80))
RESULTS = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])


def codes(shape: tuple[int, int], dtype: torch.dtype, layout: str, seed: int) -> torch.Tensor:
    """Random codes over all of the format's range; "gaps" lie between columns of the largest code there is."""
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.int8:
        values = torch.randint(-128, 128, shape, generator=generator, dtype=torch.int8)
    else:
        values = (torch.randn(shape, generator=generator) * 100).clamp(-448, 448).to(FP8)
    values = values.to(DEVICE)
    if layout == "columns":
        return values.t().contiguous().t()
    if layout == "gaps":
        width = -(-shape[1] // 16) * 16 + 16
        wide = torch.full((shape[0], width), 127, dtype=torch.int8, device=DEVICE).view(dtype)  # as FP8 this is NaN
        wide[:, : shape[1]] = values
        return wide[:, : shape[1]]
    return values


def scales(count: int, seed: int) -> torch.Tensor:
    return (torch.rand(count, generator=torch.Generator().manual_seed(seed)) + 0.01).to(DEVICE)


def exact(
    a: torch.Tensor, b: torch.Tensor, row_scale: torch.Tensor, column_scale: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    products = (a.double().unsqueeze(2) * b.double()).sum(1)
    c = products * row_scale.double()[:, None] * column_scale.double()
    return c if bias is None else c + bias.double()


@settings(max_examples=100, deadline=None)
@given(
    SIZES, st.sampled_from([torch.int8, FP8]), st.sampled_from(["rows", "columns", "gaps"]),
    st.sampled_from(["rows", "columns", "gaps"]), st.booleans(), RESULTS, st.booleans(), st.integers(0, 2**31),
)  # fmt: skip
def test_products(
    sizes: tuple[int, int, int], dtype: torch.dtype, a_layout: str, weight_layout: str, has_bias: bool,
    result: torch.dtype, fast: bool, seed: int,
) -> None:  # fmt: skip
    M, N, K = sizes
    a, weight = codes((M, K), dtype, a_layout, seed), codes((N, K), dtype, weight_layout, seed + 1)
    size = 2e-4 if result == torch.float16 else 1.0  # what keeps the result inside of float16
    row_scale, column_scale = scales(M, seed + 2) * size, scales(N, seed + 3)
    bias = scales(N, seed + 4).to(result) if has_bias else None
    config = KernelConfig({"BLOCK_M": 16, "BLOCK_N": 32, "BLOCK_K": 32, "GROUP": 2}, 4, 2)
    with poisoned():
        c = torch.empty((M, N), dtype=result, device=DEVICE)
        if c.numel():
            launch_scaled_matmul(config, a, weight.t(), row_scale, column_scale, bias, c, fast)
    largest = float(row_scale.max()) * float(a.float().abs().max()) * 448 if M and K else 0.0
    slack = 1e-3 * largest if DEVICE.type == "cuda" and dtype == FP8 else 1e-7 * largest * K  # 14 bits on tensor cores
    assert_close(c, exact(a, weight.t(), row_scale, column_scale, bias), ulps=2, slack=slack)


@pytest.mark.parametrize("code", [-128, 127])
def test_the_largest_int8_sums_are_exact(code: int) -> None:
    a = torch.full((2, 4096), code, dtype=torch.int8, device=DEVICE)
    one = torch.ones(2, device=DEVICE)
    expected = torch.full((2, 2), float(4096 * code * code), device=DEVICE)  # 2²⁶: float32 has it, float16 would not
    assert torch.equal(scaled_matmul(a, a.t(), one, one, dtype=torch.float32), expected)


@pytest.mark.parametrize("mode", ["triton", "reference"])
@pytest.mark.parametrize("dtype", [torch.int8, FP8])
def test_a_product_as_a_model_calls_it(mode: kernels.dispatch.Mode, dtype: torch.dtype) -> None:
    a, weight = codes((3, 200), dtype, "rows", 0), codes((20, 200), dtype, "rows", 1)
    row_scale, column_scale, bias = scales(3, 2), scales(20, 3), scales(20, 4).bfloat16()
    with poisoned(), kernels.use(mode):
        c = scaled_matmul(a, weight.t(), row_scale, column_scale, bias)
    assert c.dtype == torch.bfloat16
    assert_close(c, exact(a, weight.t(), row_scale, column_scale, bias), ulps=2)


def test_a_sum_that_is_promoted_takes_a_smaller_tile() -> None:
    fast, promoted = (scaled_config(8192, 8192, 8192, 132, fast).blocks for fast in (True, False))
    assert (fast["BLOCK_M"], fast["BLOCK_N"], fast["BLOCK_K"]) == (128, 256, 128)
    assert (promoted["BLOCK_M"], promoted["BLOCK_N"], promoted["BLOCK_K"]) == (128, 128, 128)


def test_what_does_not_fit_together_is_refused() -> None:
    a, b = torch.ones(2, 3, dtype=torch.int8, device=DEVICE), torch.ones(3, 4, dtype=torch.int8, device=DEVICE)
    row_scale, column_scale = torch.ones(2, device=DEVICE), torch.ones(4, device=DEVICE)
    with pytest.raises(ValueError, match=r"must be \[M, K\] and \[K, N\]"):
        scaled_matmul(a, b.t(), row_scale, column_scale)
    with pytest.raises(ValueError, match="both must be one of"):
        scaled_matmul(a, b.to(FP8), row_scale, column_scale)
    with pytest.raises(ValueError, match=r"must be torch\.float32 \[2\] and \[4\]"):
        scaled_matmul(a, b, column_scale, row_scale)
    with pytest.raises(ValueError, match=r"row_scale is torch\.float64"):
        scaled_matmul(a, b, row_scale.double(), column_scale)
    with pytest.raises(ValueError, match="bias is"):
        scaled_matmul(a, b, row_scale, column_scale, row_scale)
    with pytest.raises(ValueError, match="compute no gradients"):
        scaled_matmul(a, b, row_scale.requires_grad_(), column_scale)


def test_torch_compile_sees_one_node() -> None:
    a, b = torch.ones(2, 3, dtype=torch.int8, device=DEVICE), torch.ones(3, 4, dtype=torch.int8, device=DEVICE)
    arguments = (a, b, torch.ones(2, device=DEVICE), torch.ones(4, device=DEVICE))
    torch.library.opcheck(torch.ops.infra_lab.scaled_matmul.default, arguments)
