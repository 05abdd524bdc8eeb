"""The embedding against a loop over tokens, bit for bit; both implementations."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kernels
from kernels.dispatch import Mode
from kernels.embedding import embedding
from tests.kernels.conftest import DEVICE, poisoned
from tests.kernels.strided import spread_rows

IMPLEMENTATIONS = st.sampled_from(["triton", "reference"])
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])


@settings(max_examples=80, deadline=None)
@given(
    IMPLEMENTATIONS,
    st.integers(1, 20),
    st.one_of(st.integers(1, 40), st.integers(1000, 2100)),
    st.lists(st.integers(0, 3), max_size=2),
    DTYPES,
    st.sampled_from([torch.int64, torch.int32]),
    st.integers(0, 5),
    st.integers(0, 2**31),
)
def test_embedding(
    implementation: Mode,
    num_rows: int,
    width: int,
    shape: list[int],
    dtype: torch.dtype,
    ids: torch.dtype,
    gap: int,
    seed: int,
) -> None:
    """Ids from below the table to above it."""
    table = spread_rows((num_rows, width), dtype, 1.0, gap, seed)
    generator = torch.Generator().manual_seed(seed)
    token_ids = torch.randint(-2, num_rows + 2, shape, generator=generator).to(DEVICE, ids)
    with poisoned(), kernels.use(implementation):
        y = embedding(table, token_ids)
    assert y.shape == (*shape, width)
    assert y.is_contiguous()
    for row, token in zip(y.view(-1, width), token_ids.flatten().tolist(), strict=True):
        assert torch.equal(row, table[token] if 0 <= token < num_rows else torch.zeros_like(row))


def test_a_table_that_lies_by_columns() -> None:
    table = torch.randn(6, 5, device=DEVICE).t()
    assert torch.equal(embedding(table, torch.tensor([4, 0], device=DEVICE)), table[[4, 0]])


def test_what_does_not_fit_is_refused() -> None:
    table, token_ids = torch.ones(3, 4, device=DEVICE), torch.tensor([0], device=DEVICE)
    for bad in (table[0], table[:0], table.long()):
        with pytest.raises(ValueError, match=r"must be \[V, H\]"):
            embedding(bad, token_ids)
    with pytest.raises(ValueError, match="int64 or int32"):
        embedding(table, token_ids.float())


def test_a_gradient_is_refused() -> None:
    with pytest.raises(ValueError, match="compute no gradients"):
        embedding(torch.ones(3, 4, device=DEVICE, requires_grad=True), torch.tensor([0], device=DEVICE))
