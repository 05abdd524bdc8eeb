"""Top-k against Python's sort by value and index: ties, signed zeros, infinities, rows of several tiles."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kernels
from kernels.sort import SELECT_CONFIGS, top_k
from tests.kernels.conftest import DEVICE, poisoned
from tests.kernels.strided import spread_rows

DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
TILE = SELECT_CONFIGS[0].blocks["BLOCK"]
INFINITY = float("inf")


def check(x: torch.Tensor, k: int) -> None:
    with poisoned():
        values, indices = top_k(x, k)
    with kernels.use("reference"):
        same_values, same_indices = top_k(x, k)
    assert torch.equal(values, same_values)
    assert torch.equal(indices, same_indices)
    for row, row_values, row_indices in zip(x.tolist(), values.tolist(), indices.tolist(), strict=True):
        wanted = sorted(range(len(row)), key=lambda i: (-row[i], i))[:k]
        assert row_indices == wanted
        assert row_values == [row[i] for i in wanted]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 3), st.integers(1, 200), st.integers(1, 64), DTYPES, st.integers(0, 7), st.integers(0, 2**31))
def test_top_k(num_rows: int, width: int, k: int, dtype: torch.dtype, gap: int, seed: int) -> None:
    check(spread_rows((num_rows, width), dtype, 1.0, gap, seed), min(k, width))


@settings(max_examples=40, deadline=None)
@given(st.data(), st.integers(1, 80), DTYPES)
def test_ties_and_extreme_values(data: st.DataObject, width: int, dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    few = st.sampled_from([-INFINITY, -largest, -1.0, -0.0, 0.0, 1e-7, 1.0, largest, INFINITY])
    x = torch.tensor([data.draw(st.lists(few, min_size=width, max_size=width))], dtype=dtype, device=DEVICE)
    check(x, data.draw(st.integers(1, min(width, 64))))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_several_tiles(dtype: torch.dtype) -> None:
    """bfloat16 has ties between tiles by itself; the second row is all ties, the third has its largest in the last tile."""
    x = spread_rows((4, 2 * TILE + 37), dtype, 1.0, 3, 0)
    x[1] = 1.0
    x[2, -40:] += 100.0
    x[3, :-5] = -INFINITY
    check(x, 64)
    check(x, 7)


def test_more_candidates_than_the_second_kernel_takes_at_once() -> None:
    check(spread_rows((1, 40 * TILE), torch.float32, 1.0, 0, 0), 64)


def test_leading_dimensions_and_transposed_rows() -> None:
    x = torch.randn(8, 3, 5).transpose(0, 2).to(DEVICE)
    values, indices = top_k(x, 3)
    assert values.shape == indices.shape == (5, 3, 3)
    assert torch.equal(values, x.gather(-1, indices))
    assert torch.equal(values, x.sort(-1, descending=True).values[..., :3])


@pytest.mark.parametrize("k", [0, 6, 65])
def test_a_wrong_k_is_refused(k: int) -> None:
    x = torch.ones(2, 5 if k == 6 else 100, device=DEVICE)
    with pytest.raises(ValueError, match=f"k is {k}"):
        top_k(x, k)


def test_other_dtypes_and_gradients_are_refused() -> None:
    with pytest.raises(ValueError, match="float32, bfloat16 or float16"):
        top_k(torch.ones(2, 5, device=DEVICE, dtype=torch.float64), 2)
    with pytest.raises(ValueError, match="compute no gradients"):
        top_k(torch.ones(2, 5, device=DEVICE, requires_grad=True), 2)
