"""GPTQ against its own definition: OBQ in float64, the closed form, and every point of the grid."""

import itertools

import pytest
import torch

from infra_lab.errors import ConfigError
from infra_lab.quantization.awq import output_error
from infra_lab.quantization.gptq import gptq, inverse_factor, made_up
from infra_lab.quantization.grouped import grid_of, rtn
from infra_lab.quantization.observers import Hessian


def correlated_inputs(num_tokens: int, width: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=generator)
    return torch.randn(num_tokens, width, generator=generator) @ mix


def hessian_of(x: torch.Tensor) -> torch.Tensor:
    observed = Hessian()
    for batch in x.split(7):
        observed.observe(batch)
    return observed.matrix


def test_the_hessian_gives_the_output_error_without_the_inputs() -> None:
    x, d = correlated_inputs(50, 12, 0), torch.randn(5, 12, generator=torch.Generator().manual_seed(1))
    expected = (x.double() @ d.double().t()).square().sum(dim=1).mean()
    assert output_error(d, hessian_of(x)) == pytest.approx(float(expected), rel=1e-5)


def test_a_row_of_the_factor_is_the_closed_form_for_the_columns_left() -> None:
    """δ_F that makes up best for a change of column i: least squares on the inputs' second moments, in float64."""
    h = hessian_of(correlated_inputs(60, 9, 2)).double()
    factor = inverse_factor(h, damping=0.0).double()
    for i in range(8):
        rest = slice(i + 1, 9)
        best = -torch.linalg.solve(h[rest, rest], h[rest, i])  # of min over δ of (e_i + δ)ᵀ H (e_i + δ)
        assert torch.allclose(-factor[i, rest] / factor[i, i], -best, rtol=1e-4, atol=1e-5)


def obq(
    w: torch.Tensor, h: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, bits: int, order: list[int]
) -> torch.Tensor:
    """GPTQ without its shortcuts: a new inverse for every column, groups of 4 columns."""
    w, scale, zero = w.double().clone(), scale.double(), zero.double()
    codes = torch.zeros_like(w)
    left = list(order)
    while left:
        i = left[0]
        inverse = torch.linalg.inv(h[left][:, left])
        g = i // 4
        codes[:, i] = (w[:, i] / scale[:, g] + zero[:, g]).round().clamp(0, 2**bits - 1)
        error = w[:, i] - scale[:, g] * (codes[:, i] - zero[:, g])
        w[:, left] -= torch.outer(error / inverse[0, 0], inverse[0])
        left = left[1:]
    return codes


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
def test_equals_the_unhurried_algorithm(act_order: bool, symmetric: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "infra_lab.quantization.gptq.LAZY_COLUMNS", 5
    )  # blocks that end inside groups, the last one short
    w = torch.randn(20, 12, generator=torch.Generator().manual_seed(3))
    h = hessian_of(correlated_inputs(100, 12, 4))
    damped = h.double() + 0.01 * h.double().diagonal().mean() * torch.eye(12)
    order = h.diagonal().argsort(descending=True).tolist() if act_order else list(range(12))
    scale, zero = grid_of(w, 3, 4, symmetric=symmetric)
    found = gptq(w, h, 3, 4, damping=0.01, act_order=act_order, symmetric=symmetric, clips=())
    assert torch.equal(found.q.double(), obq(w, damped, scale, zero, 3, order))
    assert torch.equal(found.scale, scale)


def least_error(w: torch.Tensor, h: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> float:
    """The optimum over all 4^in grid points of each row."""
    points = torch.tensor(list(itertools.product(range(4), repeat=w.shape[1])), dtype=torch.float32)
    total = 0.0
    for row, s, z in zip(w, scale, zero, strict=True):
        difference = row - s * (points - z)
        total += 0.5 * float(((difference @ h) * difference).sum(dim=1).min())
    return total


def test_beats_rounding_and_is_near_the_best_of_all_grid_points() -> None:
    """60 layers of 6 inputs and 16 rows in 2 bits, on the same min-max grids.

    Seen: 1.17 times the optimum in the middle and 1.70 at worst; plain rounding 1.67 and 3.7. Being greedy, it loses to plain
    rounding now and then (3 of 60), where inputs are nearly dependent and corrections run off the end of the grid.
    """
    to_best, to_rounding = [], []
    for seed in range(60):
        w = torch.randn(16, 6, generator=torch.Generator().manual_seed(seed))
        h = hessian_of(correlated_inputs(200, 6, 100 + seed))
        best = least_error(w, h, *grid_of(w, 2, 6))
        found = output_error(w - gptq(w, h, 2, 6, damping=0.01, clips=()).dequantize(), h)
        assert best * 0.999 <= found < 2.5 * best
        to_best.append(found / best)
        to_rounding.append(found / output_error(w - rtn(w, 2, 6).dequantize(), h))
    assert sorted(to_best)[30] < 1.3
    assert sorted(to_rounding)[30] < 0.8
    assert sum(ratio > 1 for ratio in to_rounding) <= 6


def test_a_clipped_grid_pays_on_inputs_that_were_not_calibrated_on() -> None:
    w = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    x = correlated_inputs(2000, 64, 1)
    h, held_out = hessian_of(x[:1000]), hessian_of(x[1000:])
    plain = output_error(w - gptq(w, h, 3, 32, clips=()).dequantize(), held_out)
    assert output_error(w - gptq(w, h, 3, 32).dequantize(), held_out) < 0.97 * plain


def test_what_is_made_up_is_the_least_squares() -> None:
    generator = torch.Generator().manual_seed(3)
    w = torch.randn(6, 8, generator=generator, dtype=torch.float64)
    full = torch.randn(64, 8, generator=generator, dtype=torch.float64)
    inputs = full + 0.3 * torch.randn(64, 8, generator=generator, dtype=torch.float64)
    counts = torch.randint(1, 4, (64,), generator=generator)
    rows = torch.arange(64).repeat_interleave(counts)  # to count thrice is to be there three times
    expected = torch.linalg.lstsq(inputs[rows], full[rows] @ w.t()).solution.t()
    found = made_up(w, full, inputs, token_weights=counts.double(), damping=0.0)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(made_up(w, inputs, inputs), w)
    assert made_up(w, torch.zeros(4, 8), torch.zeros(4, 8)) is w
    errors = [(inputs @ v.t() - full @ w.t()).square().mean() for v in (made_up(w, full, inputs), w)]
    assert errors[0] < errors[1]


def test_independent_inputs_leave_nothing_to_make_up_for() -> None:
    w = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    diagonal = torch.diag(torch.rand(32, generator=torch.Generator().manual_seed(1)) + 0.1)
    assert torch.equal(gptq(w, diagonal, 4, 16, clips=()).q, rtn(w, 4, 16).q)


def test_dead_columns_are_rounded_by_themselves_and_disturb_nobody() -> None:
    w = torch.randn(8, 12, generator=torch.Generator().manual_seed(0))
    w[:, 2], w[:, 11] = 0.25, -0.25  # no extremes: the grids stay when they change
    x = correlated_inputs(60, 12, 1)
    x[:, [2, 11]] = 0
    found = gptq(w, hessian_of(x), 3, 12, clips=())
    assert torch.equal(found.q[:, [2, 11]], rtn(w, 3, 12).q[:, [2, 11]])
    other = w.clone()
    other[:, [2, 11]] *= 0.1
    alive = [i for i in range(12) if i not in (2, 11)]
    assert torch.equal(gptq(other, hessian_of(x), 3, 12, clips=()).q[:, alive], found.q[:, alive])
    assert torch.equal(gptq(w, torch.zeros(12, 12), 3, 12, clips=()).q, rtn(w, 3, 12).q)  # nothing but dead columns


def test_more_weights_than_tokens_need_the_damping() -> None:
    w = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    h = hessian_of(correlated_inputs(3, 16, 1))
    assert gptq(w, h, 4, 16).q.shape == (4, 16)
    with pytest.raises(ConfigError, match=r"layer 3 o: the Hessian .* not positive definite with damping 0"):
        gptq(w, h - 0.1 * torch.eye(16), 4, 16, damping=0.0, name="layer 3 o")


def test_refusals() -> None:
    w, h = torch.randn(4, 16), torch.eye(16)
    with pytest.raises(ConfigError, match="down has NaN or infinite weights"):
        gptq(w * torch.nan, h, 4, 16, name="down")
    with pytest.raises(ConfigError, match="groups of 5 do not divide"):
        gptq(w, h, 4, 5)
    with pytest.raises(ConfigError, match=r"16 inputs, its Hessian is \[4, 4\]"):
        gptq(w, torch.eye(4), 4, 16)
    with pytest.raises(ConfigError, match="not positive definite"):
        gptq(w, h * torch.inf, 4, 16)
