"""Rotary embedding against a product of complex numbers, in place and not, over views of one projection."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kernels
from kernels.rotary import apply_rotary, rotary_
from tests.kernels.conftest import DEVICE, assert_close, poisoned

DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
HALVES = st.sampled_from([1, 3, 8, 32, 40])
HEADS = st.integers(0, 11)


def tables(angles: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and signed sin [T, 1, D] of angles [T, D/2], as rows of a longer table."""
    cos = torch.cat([angles.cos()] * 2, dim=-1).unsqueeze(1)
    sin = torch.cat([-angles.sin(), angles.sin()], dim=-1).unsqueeze(1)
    return cos.to(DEVICE, dtype), sin.to(DEVICE, dtype)


def turned(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """The planes of heads [T, H, D] as complex numbers, times cos + i·sin of the rounded tables."""
    half = heads.shape[-1] // 2
    x = heads.double()
    turn = torch.complex(cos[..., :half].double(), sin[..., half:].double())
    y = torch.complex(x[..., :half], x[..., half:]) * turn
    return torch.cat([y.real, y.imag], dim=-1)


def projection(num_tokens: int, num_heads: int, half: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_tokens, num_heads, 2 * half, generator=generator).to(DEVICE, dtype)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 4), HEADS, HALVES, DTYPES, st.integers(0, 3), st.integers(0, 2**31))
def test_apply_rotary(num_tokens: int, num_heads: int, half: int, dtype: torch.dtype, gap: int, seed: int) -> None:
    heads = projection(num_tokens, num_heads + gap, half, dtype, seed)[:, :num_heads]
    before = heads.clone()
    cos, sin = tables(torch.rand(num_tokens, half) * 6.28, dtype)
    with poisoned():
        y = apply_rotary(heads, cos, sin)
    assert y.is_contiguous()
    assert_close(y, turned(before, cos, sin))
    assert torch.equal(heads, before)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 4), HEADS, HEADS, HALVES, DTYPES, st.booleans(), st.integers(0, 2**31))
def test_in_place(
    num_tokens: int, num_heads: int, num_kv_heads: int, half: int, dtype: torch.dtype, flipped: bool, seed: int
) -> None:
    """Query and key lie in one projection, with the value behind them; or the heads lie before the tokens."""
    heads = projection(num_tokens, num_heads + 2 * num_kv_heads, half, dtype, seed)
    if flipped:
        heads = heads.transpose(0, 1).contiguous().transpose(0, 1)
    before = heads.clone()
    cos, sin = tables(torch.rand(num_tokens, half) * 6.28, dtype)
    rotary_(heads[:, :num_heads], heads[:, num_heads : num_heads + num_kv_heads], cos, sin)
    values = num_heads + num_kv_heads
    assert torch.equal(heads[:, values:], before[:, values:])
    assert_close(heads[:, :values], turned(before[:, :values], cos, sin))


@pytest.mark.parametrize("implementation", ["triton", "reference"])
def test_tables_whose_halves_differ(implementation: kernels.dispatch.Mode) -> None:
    query, key = projection(3, 2, 4, torch.float32, 0), projection(3, 1, 4, torch.float32, 1)
    cos, sin = torch.randn(3, 1, 8).to(DEVICE), torch.randn(3, 1, 8).to(DEVICE)
    exact = [x.double() * cos.double() + x.double().roll(4, -1) * sin.double() for x in (query, key)]
    with kernels.use(implementation):
        copied = apply_rotary(query, cos, sin)
        rotary_(query, key, cos, sin)
    for actual, wanted in zip((copied, query, key), (exact[0], *exact), strict=True):
        torch.testing.assert_close(actual.double(), wanted, atol=1e-5, rtol=1e-5)


def test_wrong_shapes_are_refused() -> None:
    table = torch.ones(2, 1, 8, device=DEVICE)
    with pytest.raises(ValueError, match=r"both must be \[2, 1, 6\]"):
        apply_rotary(torch.ones(2, 3, 6, device=DEVICE), table, table)
    with pytest.raises(ValueError, match="even D"):
        apply_rotary(torch.ones(2, 3, 7, device=DEVICE), table, table)
    heads, spread = torch.ones(2, 3, 8, device=DEVICE), torch.ones(2, 8, 3, device=DEVICE).transpose(1, 2)
    with pytest.raises(ValueError, match="last of each must be 1"):
        rotary_(heads, spread, table, table)
    assert (heads == 1).all()
    assert_close(apply_rotary(spread, table, table), torch.full((2, 3, 8), 2.0))


def test_a_gradient_is_refused() -> None:
    table = torch.ones(2, 1, 8, device=DEVICE)
    with pytest.raises(ValueError, match="compute no gradients"):
        apply_rotary(torch.ones(2, 3, 8, device=DEVICE, requires_grad=True), table, table)
