"""Grouped integers: the picture in the docstring, the bounds that follow from a grid, and every refusal."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infra_lab.errors import ConfigError
from infra_lab.quantization.grouped import effective_group_size, grid_of, round_to_grid, rtn


def test_the_picture() -> None:
    weight = rtn(torch.tensor([[-0.3, 0.0, 0.1, 0.6, 0.5, 0.5, 0.5, 0.5]]), 2, 4)
    assert weight.q.tolist() == [[0, 1, 1, 3, 0, 0, 0, 0]]
    torch.testing.assert_close(weight.scale, torch.tensor([[0.3, 1.0]]))
    torch.testing.assert_close(weight.zero, torch.tensor([[1.0, -0.5]]))
    assert weight.dequantize()[0, 4:].tolist() == [0.5] * 4


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 10_000), bits=st.integers(2, 8), group_size=st.sampled_from([3, 8, 24]), symmetric=st.booleans()
)
def test_every_weight_is_within_half_a_step(seed: int, bits: int, group_size: int, symmetric: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(5, 24, generator=generator) * 10.0 ** float(torch.randint(-6, 6, (), generator=generator))
    weight = rtn(w, bits, group_size, symmetric=symmetric)
    step = weight.scale.repeat_interleave(group_size, dim=1)
    assert (weight.scale > 0).all()
    assert ((weight.dequantize(torch.float64) - w.double()).abs() <= 0.5001 * step).all()
    assert int(weight.q.max()) < 2**bits
    if symmetric:
        assert (weight.zero == 2 ** (bits - 1)).all()
        assert int(weight.q.min()) >= 1
    else:
        by_group = weight.q.view(5, -1, group_size)
        assert (by_group.amin(2) == 0).all()
        assert (by_group.amax(2) == 2**bits - 1).all()  # both ends are used


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("value", [0.0, 1.0, -0.37, 1e-30, 3e38])
def test_a_constant_group_is_exact(symmetric: bool, value: float) -> None:
    w = torch.full((2, 8), value)
    assert torch.equal(rtn(w, 4, 4, symmetric=symmetric).dequantize(), w)


def test_dead_columns_and_rows_stay_dead() -> None:
    w = torch.randn(6, 16)
    w[2], w[:, 5] = 0.0, 0.0
    assert not rtn(w, 4, 16, symmetric=True).dequantize()[:, 5].any()
    assert not rtn(w, 3, 8).dequantize()[2].any()


def test_a_range_that_overflows_float32_still_has_a_scale() -> None:
    w = torch.tensor([[-3e38, 3e38, 0.0, 1e38]])
    weight = rtn(w, 4, 4)
    assert weight.scale.isfinite().all()
    assert ((weight.dequantize(torch.float64) - w.double()).abs() <= 0.51 * weight.scale).all()


def test_values_off_the_grid_get_its_ends() -> None:
    scale, zero = grid_of(torch.tensor([[0.0, 3.0]]), 2, 2)
    assert round_to_grid(torch.tensor([[-5.0, 9.0]]), scale, zero, 2, 2).q.tolist() == [[0, 3]]


def test_rows_can_be_widened_alone() -> None:
    weight = rtn(torch.randn(7, 16), 4, 8)
    assert torch.equal(weight.dequantize(rows=slice(2, 5)), weight.dequantize()[2:5])


def test_effective_group_size() -> None:
    assert [effective_group_size(width, 128) for width in (576, 1536, 192, 96, 4096)] == [64, 128, 64, 32, 128]
    assert effective_group_size(4096, 32) == 32
    with pytest.raises(ConfigError, match=r"no group size up to 64 divides 100 inputs; .* such as int8 or fp8"):
        effective_group_size(100, 64)


def test_refusals_name_the_matrix() -> None:
    w = torch.zeros(2, 96)
    with pytest.raises(
        ConfigError, match=r"layer 3 down has 96 inputs, which groups of 64 do not divide; .*32, 48, 96"
    ):
        rtn(w, 4, 64, name="layer 3 down")
    with pytest.raises(ConfigError, match="9 bits"):
        rtn(w, 9, 32)
    for bad in (torch.nan, torch.inf, -torch.inf):
        w[1, 3] = bad
        with pytest.raises(ConfigError, match="layer 3 down has NaN or infinite weights"):
            rtn(w, 4, 32, name="layer 3 down")
