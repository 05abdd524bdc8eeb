"""The gated activations against their formulas in float64."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.activations import gelu_mul, silu_mul
from tests.kernels.conftest import DEVICE, assert_close, poisoned
from tests.kernels.strided import spread_rows

DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
KINDS = ("silu", "tanh", "none")
KERNELS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": silu_mul,
    "tanh": gelu_mul,
    "none": lambda x: gelu_mul(x, "none"),
}


def exact(gate_up: torch.Tensor, kind: str) -> torch.Tensor:
    width = gate_up.shape[-1] // 2
    gate, up = gate_up[..., :width].double(), gate_up[..., width:].double()
    if kind == "silu":
        return gate / (1 + torch.exp(-gate)) * up
    if kind == "tanh":
        return gate / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3))) * up
    return gate / 2 * (1 + torch.erf(gate / math.sqrt(2))) * up


@settings(max_examples=90, deadline=None)
@given(
    st.sampled_from(KINDS),
    st.tuples(st.integers(0, 5), st.one_of(st.integers(1, 60), st.integers(1020, 2100))),
    DTYPES,
    st.sampled_from([1e-3, 1.0, 30.0]),
    st.integers(0, 7),
    st.integers(0, 2**31),
)
def test_gates(kind: str, shape: tuple[int, int], dtype: torch.dtype, scale: float, gap: int, seed: int) -> None:
    x = spread_rows((shape[0], 2 * shape[1]), dtype, scale, gap, seed)
    with poisoned():
        y = KERNELS[kind](x)
    # 1 + erf cancels where gate is very negative: what float32 loses there is relative to gate · up, not to the result.
    slack = 1e-6 * float((x.double()[:, : shape[1]] * x.double()[:, shape[1] :]).abs().max()) if x.numel() else 0.0
    assert_close(y, exact(x, kind), slack=slack)


@pytest.mark.parametrize("kind", KINDS)
def test_gates_that_are_wide_open_or_shut(kind: str) -> None:
    gates = [-(2.0**127), -1e4, -200.0, 0.0, 200.0, 1e4, 2.0**127]
    y = KERNELS[kind](torch.tensor([*gates, *[1.0] * 7], device=DEVICE))
    assert y.tolist() == [max(gate, 0.0) for gate in gates]


def test_leading_dimensions() -> None:
    x = torch.randn(3, 5, 8).transpose(0, 1).to(DEVICE)
    assert_close(silu_mul(x), exact(x, "silu"), slack=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_an_odd_width_and_a_gradient_are_refused(kind: str) -> None:
    with pytest.raises(ValueError, match="two halves"):
        KERNELS[kind](torch.ones(2, 7, device=DEVICE))
    with pytest.raises(ValueError, match="compute no gradients"):
        KERNELS[kind](torch.ones(2, 8, device=DEVICE, requires_grad=True))


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(ValueError, match="'tanh' or 'none'"):
        gelu_mul(torch.ones(2, 8, device=DEVICE), "erf")
