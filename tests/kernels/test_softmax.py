"""Softmax against its formula in float64: short rows that share a program, long ones, and longer than the registers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.softmax import MAX_COLUMNS_IN_REGISTERS, softmax
from tests.kernels.conftest import DEVICE, assert_close, poisoned
from tests.kernels.strided import spread_rows

DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
SHAPES = st.one_of(
    st.tuples(st.integers(0, 40), st.integers(1, 70)), st.tuples(st.integers(0, 3), st.integers(1, 5000))
)
INFINITY = float("inf")


def exact_softmax(x: torch.Tensor) -> torch.Tensor:
    powers = torch.exp(x.double() - x.double().amax(-1, keepdim=True))
    return powers / powers.sum(-1, keepdim=True)


@settings(max_examples=60, deadline=None)
@given(SHAPES, DTYPES, st.sampled_from([1e-3, 1.0, 100.0, 1e4]), st.integers(0, 7), st.integers(0, 2**31))
def test_softmax(shape: tuple[int, int], dtype: torch.dtype, scale: float, gap: int, seed: int) -> None:
    x = spread_rows(shape, dtype, scale, gap, seed)
    with poisoned():
        assert_close(softmax(x), exact_softmax(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_rows_longer_than_the_registers(dtype: torch.dtype, scale: float) -> None:
    x = spread_rows((2, MAX_COLUMNS_IN_REGISTERS + 4099), dtype, scale, 3, 1)
    x[0, :5000] = -INFINITY  # the first chunk has nothing
    x[1, -1] = 40 * scale  # the maximum comes last
    with poisoned():
        assert_close(softmax(x), exact_softmax(x))


@pytest.mark.parametrize("width", [5, MAX_COLUMNS_IN_REGISTERS + 1])
def test_what_is_masked_gets_nothing(width: int) -> None:
    x = torch.full((2, width), -INFINITY, device=DEVICE)
    x[0, 3] = -1e30
    y = softmax(x)
    assert y[0].nonzero().tolist() == [[3]]
    assert y[0, 3] == 1
    assert y[1].isnan().all()  # as torch has it


def test_the_largest_numbers_do_not_overflow() -> None:
    x = torch.tensor([[3e38, 3e38, -3e38]], device=DEVICE)
    assert softmax(x).tolist() == [[0.5, 0.5, 0.0]]


def test_leading_dimensions_and_transposed_rows() -> None:
    x = torch.randn(8, 3, 5).transpose(0, 2).to(DEVICE)  # [5, 3, 8], columns not next to each other
    assert_close(softmax(x), exact_softmax(x))
    assert softmax(torch.empty(4, 0, device=DEVICE)).shape == (4, 0)


@pytest.mark.parametrize("x", [torch.tensor(1.0), torch.ones(2, 2, dtype=torch.int64)])
def test_what_has_no_softmax_is_refused(x: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"must be \[..., W\]"):
        softmax(x.to(DEVICE))


def test_a_gradient_is_refused() -> None:
    with pytest.raises(ValueError, match="compute no gradients"):
        softmax(torch.ones(2, 8, device=DEVICE, requires_grad=True))
