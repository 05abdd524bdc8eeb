"""Merging partial attentions: equal to attending to all keys at once, whatever the parts are."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kernels
from kernels.merge import merge_attention
from tests.kernels.attention_cases import assert_lse_close, by_hand
from tests.kernels.conftest import DEVICE, assert_close, poisoned


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=20), st.integers(0, 3), st.sampled_from([(1, 1), (6, 2)]),
    st.sampled_from([8, 20]), st.sampled_from([1.0, 30.0]), st.sampled_from(["triton", "triton", "reference"]),
    st.integers(0, 2**31),
)  # fmt: skip
def test_parts_of_the_keys_merge_to_all_of_them(
    parts: list[int], num_queries: int, heads: tuple[int, int], head_dim: int, spread: float,
    mode: kernels.dispatch.Mode, seed: int,
) -> None:  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(num_queries, heads[0], head_dim, generator=generator) * spread
    key, value = torch.randn(2, sum(parts), heads[1], head_dim, generator=generator).unbind()
    pieces = [by_hand(query, k, v, causal=False) for k, v in zip(key.split(parts), value.split(parts), strict=True)]
    outs, lses = (torch.stack([piece[i] for piece in pieces]).float() for i in (0, 1))
    with poisoned(), kernels.use(mode):
        out, lse = merge_attention(outs, lses)
    exact, exact_lse = by_hand(query, key, value, causal=False)
    # A log-sum-exp of 100 is off by 4e-6 in float32, and a weight as much.
    assert_close(out, exact, slack=1e-5 * spread * float(value.abs().max()) if value.numel() else 0.0)
    assert_lse_close(lse, exact_lse)


def test_more_parts_than_a_tile_takes() -> None:
    """40 parts are three rounds; the largest log-sum-exp comes first, in the middle, or last."""
    outs, lses = torch.randn(40, 3, 1, 8, device=DEVICE), torch.randn(40, 3, 1, device=DEVICE)
    for row, part in enumerate((0, 20, 39)):
        lses[part, row] += 4.0
    with poisoned():
        out, lse = merge_attention(outs, lses)
    assert_close(out, (outs.double() * torch.softmax(lses.double(), 0).unsqueeze(-1)).sum(0), slack=1e-6)
    assert_lse_close(lse, torch.logsumexp(lses.double(), 0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_and_strides(dtype: torch.dtype) -> None:
    outs = torch.randn(3, 7, 5, 16).to(DEVICE, dtype).transpose(0, 1)  # 7 parts, 3 tokens, not contiguous
    lses = torch.randn(7, 3, 5, device=DEVICE)
    with poisoned():
        out, _ = merge_attention(outs, lses)
    weights = torch.softmax(lses.double(), 0).unsqueeze(-1)
    assert out.dtype == dtype
    assert_close(out, (outs.double() * weights).sum(0), slack=float(torch.finfo(dtype).eps))


@pytest.mark.parametrize("mode", ["triton", "reference"])
def test_what_a_part_without_keys_holds_is_not_read(mode: kernels.dispatch.Mode) -> None:
    outs, lses = torch.ones(2, 1, 1, 8, device=DEVICE), torch.zeros(2, 1, 1, device=DEVICE)
    outs[1], lses[1] = math.nan, -math.inf
    with kernels.use(mode):
        assert torch.equal(merge_attention(outs, lses)[0], outs[0])


def test_what_is_refused() -> None:
    outs, lses = torch.ones(2, 3, 4, 8, device=DEVICE), torch.ones(2, 3, 4, device=DEVICE)
    for bad in ((outs[0], lses), (outs, lses[:1]), (outs, lses.double()), (outs[:0], lses[:0])):
        with pytest.raises(ValueError, match="must be \\[P, T, H, D\\]"):
            merge_attention(*bad)
    with pytest.raises(ValueError, match="compute no gradients"):
        merge_attention(outs.requires_grad_(), lses)
