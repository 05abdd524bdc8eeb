"""The norms against their formulas in float64: any shape, dtype, row stride and scale of values."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kernels
from tests.kernels.conftest import DEVICE, assert_close, poisoned

DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
SHAPES = st.tuples(st.integers(0, 5), st.integers(1, 300))
EPS = 1e-5


def rows(shape: tuple[int, int], dtype: torch.dtype, scale: float, gap: int, seed: int) -> torch.Tensor:
    """Random rows that lie `gap` elements apart, NaN between them."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator, dtype=torch.float64) * scale + scale / 2
    wide = torch.full((shape[0], shape[1] + gap), float("nan"), dtype=dtype)
    wide[:, : shape[1]] = values.to(dtype)
    return wide.to(DEVICE)[:, : shape[1]]


def exact_rms_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    x = x.double()
    return x / torch.sqrt(x.square().mean(-1, keepdim=True) + EPS) * weight.double()


@settings(max_examples=60, deadline=None)
@given(SHAPES, DTYPES, st.sampled_from([1e-3, 1.0, 100.0]), st.integers(0, 7), st.integers(0, 2**31))
def test_rms_norm(shape: tuple[int, int], dtype: torch.dtype, scale: float, gap: int, seed: int) -> None:
    x, weight = rows(shape, dtype, scale, gap, seed), rows((1, shape[1]), dtype, 1.0, 0, seed + 1)[0]
    with poisoned():
        assert_close(kernels.rms_norm(x, weight, EPS), exact_rms_norm(x, weight))


@settings(max_examples=60, deadline=None)
@given(SHAPES, DTYPES, st.sampled_from([1e-3, 1.0, 100.0]), st.integers(0, 7), st.integers(0, 2**31))
def test_add_rms_norm(shape: tuple[int, int], dtype: torch.dtype, scale: float, gap: int, seed: int) -> None:
    x, residual = rows(shape, dtype, scale, 3, seed), rows(shape, dtype, scale, gap, seed + 1)
    weight = rows((1, shape[1]), dtype, 1.0, 0, seed + 2)[0]
    total = x.double() + residual.double()
    with poisoned():
        y = kernels.add_rms_norm(x, residual, weight, EPS)
    assert_close(residual, total, ulps=1)
    assert_close(y, exact_rms_norm(residual, weight))


@settings(max_examples=60, deadline=None)
@given(SHAPES, DTYPES, st.sampled_from([1e-2, 1.0, 100.0]), st.integers(0, 7), st.integers(0, 2**31))
def test_layer_norm(shape: tuple[int, int], dtype: torch.dtype, scale: float, gap: int, seed: int) -> None:
    x = rows(shape, dtype, scale, gap, seed)
    weight, bias = (rows((1, shape[1]), dtype, 1.0, 0, seed + i)[0] for i in (1, 2))
    centred = x.double() - x.double().mean(-1, keepdim=True)
    scaled = centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + EPS)
    with poisoned():
        y = kernels.layer_norm(x, weight, bias, EPS)
    # x - mean cancels: what float32 loses there is relative to x, not to the result.
    slack = 1e-6 * float(x.double().abs().max()) / EPS**0.5 if x.numel() else 0.0
    assert_close(y, scaled * weight.double() + bias.double(), ulps=8, slack=min(slack, 1e-2))


def test_leading_dimensions_and_transposed_rows() -> None:
    x = torch.randn(8, 3, 5).transpose(0, 2).to(DEVICE)  # [5, 3, 8], columns not next to each other
    weight = torch.randn(8).to(DEVICE)
    assert_close(kernels.rms_norm(x, weight, EPS), exact_rms_norm(x, weight))


@pytest.mark.parametrize("width", [7, 9])
def test_a_weight_of_another_width_is_refused(width: int) -> None:
    with pytest.raises(ValueError, match="weight must be"):
        kernels.rms_norm(torch.ones(2, 8, device=DEVICE), torch.ones(width, device=DEVICE), EPS)


def test_a_gradient_is_refused() -> None:
    with pytest.raises(ValueError, match="compute no gradients"):
        kernels.rms_norm(torch.ones(2, 8, device=DEVICE, requires_grad=True), torch.ones(8, device=DEVICE), EPS)
