"""Number formats against independent oracles: torch's casts, the published tables, and brute force over all values."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infra_lab.errors import ConfigError
from infra_lab.quantization.formats.block_fp4 import e8m0_values, quantize_mxfp4, quantize_nvfp4
from infra_lab.quantization.formats.integers import quantize_integers
from infra_lab.quantization.formats.nf4 import nf4_levels, quantize_nf4
from infra_lab.quantization.formats.small_floats import E2M1, E4M3, E5M2, SmallFloat

FP8 = [(E4M3, torch.float8_e4m3fn), (E5M2, torch.float8_e5m2)]
E2M1_VALUES = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
BFLOAT16 = torch.arange(1 << 16).to(torch.int32).sub_(1 << 15).to(torch.int16).view(torch.bfloat16)
"""All of them, NaNs and infinities too."""


def saturates(dtype: torch.dtype) -> bool:
    """What this torch does with numbers that are too large: versions differ."""
    return bool(torch.tensor([1e30]).to(dtype).float().isfinite())


def random_float32() -> torch.Tensor:
    """Any bits, and besides them numbers near the formats' own range, with their ties."""
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**31), 2**31, (1 << 19,), generator=generator).to(torch.int32).view(torch.float32)
    near = torch.randn(1 << 19, generator=generator) * torch.logspace(-6, 5, 1 << 19)
    ties = torch.arange(-(1 << 16), 1 << 16).float() / 2**11
    return torch.cat([bits, near, ties])


@pytest.mark.parametrize(("ours", "torchs"), FP8, ids=["e4m3", "e5m2"])
@pytest.mark.parametrize("values", [BFLOAT16, random_float32()], ids=["bfloat16", "float32"])
def test_fp8_rounds_as_torch_does_bit_by_bit(ours: SmallFloat, torchs: torch.dtype, values: torch.Tensor) -> None:
    expected = values.to(torchs).view(torch.uint8)
    codes = ours.encode(values, saturate=saturates(torchs))
    is_nan = values.isnan()
    assert torch.equal(codes[~is_nan], expected[~is_nan])
    assert ours.decode(codes[is_nan]).isnan().all()  # which of the NaNs is free


@pytest.mark.parametrize("ours", [E4M3, E5M2], ids=["e4m3", "e5m2"])
def test_beyond_the_largest(ours: SmallFloat) -> None:
    x = torch.tensor([ours.largest, -ours.largest * 1.01, ours.largest * 1.5, -torch.inf, torch.nan])
    assert ours.round(x, saturate=True)[:4].tolist() == [ours.largest, -ours.largest, ours.largest, -ours.largest]
    overflowed = ours.round(x)
    assert overflowed[:2].tolist() == [ours.largest, -ours.largest]  # 1 % is less than half a step
    assert (overflowed[2:].isnan() if ours is E4M3 else overflowed[2:4].isinf()).all()
    assert torch.equal(ours.decode(ours.encode(x)).nan_to_num(nan=7.5), overflowed.nan_to_num(nan=7.5))


@pytest.mark.parametrize(("ours", "torchs"), FP8, ids=["e4m3", "e5m2"])
def test_every_code_means_what_torch_reads(ours: SmallFloat, torchs: torch.dtype) -> None:
    codes = torch.arange(256).to(torch.uint8)
    expected = codes.view(torchs).float()
    assert torch.equal(ours.decode(codes).nan_to_num(nan=7.5), expected.nan_to_num(nan=7.5))


def test_e2m1_is_the_specifications_table_and_takes_the_nearest_even() -> None:
    assert E2M1.decode(torch.arange(16)).tolist() == E2M1_VALUES + [-value for value in E2M1_VALUES]
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 100.0])
    assert E2M1.round(ties).tolist() == [0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0, 6.0]  # even codes
    x = torch.linspace(-7, 7, 4001)
    table = torch.tensor(E2M1_VALUES + [-value for value in E2M1_VALUES])
    distance = (x.unsqueeze(1) - table).abs().amin(dim=1)
    assert torch.equal((E2M1.round(x) - x).abs(), distance)


def test_nf4_is_qloras_table() -> None:
    levels = nf4_levels()
    assert (levels[0], levels[7], levels[15], len(levels)) == (-1.0, 0.0, 1.0, 16)
    published = {1: -0.6961928, 4: -0.28444138, 6: -0.09105004, 8: 0.0795803, 11: 0.33791524, 14: 0.72295684}
    for index, value in published.items():
        assert math.isclose(levels[index], value, abs_tol=2e-6)
    generator = torch.Generator().manual_seed(0)
    codes, _ = quantize_nf4(torch.randn(512, 64, generator=generator))
    assert codes.long().view(-1).bincount(minlength=16)[1:15].min() > 512 * 64 / 16 / 3  # levels are used about alike


def test_nf4_takes_the_nearest_level_of_the_blocks_own_scale() -> None:
    w = torch.randn(5, 192)
    w[2, 64:128] = 0.0
    codes, scale = quantize_nf4(w)
    assert torch.equal(scale, w.view(5, 3, 64).abs().amax(2))
    read = nf4_levels()[codes.long()].view(5, 3, 64) * scale.unsqueeze(2)
    every = nf4_levels() * scale.view(5, 3, 1, 1)  # [5, 3, 1, 16]
    nearest = (w.view(5, 3, 64, 1) - every).abs().amin(3)
    torch.testing.assert_close((read - w.view(5, 3, 64)).abs(), nearest, atol=1e-6, rtol=0)


def test_mxfp4_scales_are_the_specifications_powers_of_two() -> None:
    w = torch.zeros(1, 160)
    w[0, 0], w[0, 32], w[0, 64], w[0, 96] = 6.0, 7.9, 8.0, 0.001
    codes, scale = quantize_mxfp4(w)
    assert e8m0_values(scale)[0, :4].tolist() == [1.0, 1.0, 2.0, 2.0**-12]  # 2^(floor(log2 max) - 2)
    read = (E2M1.decode(codes).view(1, 5, 32) * e8m0_values(scale).unsqueeze(2)).view(1, 160)
    assert read[0, [0, 32, 64]].tolist() == [6.0, 6.0, 8.0]  # 7.9 saturates
    assert math.isclose(read[0, 96], 0.001, rel_tol=0.05)
    assert not read[0, 128:].any()
    assert e8m0_values(torch.tensor([0, 127, 254])).tolist() == [2.0**-127, 1.0, 2.0**127]


def test_nvfp4_uses_the_whole_range_of_both_scales() -> None:
    w = torch.randn(8, 64) * torch.logspace(-3, 1, 8).unsqueeze(1)
    w[3, 16:32] = 0.0
    codes, scale, tensor_scale = quantize_nvfp4(w)
    assert E4M3.decode(scale).max() == 448.0
    steps = E4M3.decode(scale) * tensor_scale
    blocks = w.view(8, 4, 16)
    torch.testing.assert_close(steps * 6, blocks.abs().amax(2), rtol=2**-4, atol=float(tensor_scale) * 6 * 2**-9)
    read = E2M1.decode(codes).view(8, 4, 16) * steps.unsqueeze(2)
    values = E2M1.decode(torch.arange(16))
    nearest = (blocks.unsqueeze(3) - values * steps.view(8, 4, 1, 1)).abs().amin(3)
    torch.testing.assert_close((read - blocks).abs(), nearest, rtol=1e-5, atol=1e-7)
    assert not quantize_nvfp4(torch.zeros(2, 32))[0].any()


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    bits=st.sampled_from([3, 4, 8]),
    granularity=st.sampled_from(["tensor", "channel", "token", "group"]),
    symmetric=st.booleans(),
)
def test_integers_are_off_by_half_a_step_at_most(seed: int, bits: int, granularity: str, symmetric: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, 24, generator=generator) * 10 ** torch.empty(3, 1).uniform_(-4, 4, generator=generator) + 0.3
    x[1] *= seed % 2  # sometimes a row of zeros
    group_size = 8 if granularity == "group" else None
    result = quantize_integers(x, bits, granularity, symmetric=symmetric, group_size=group_size)  # type: ignore[arg-type]
    scales = {"tensor": (1, 1), "channel": (3, 1), "token": (3, 1), "group": (3, 3)}[granularity]
    assert result.scale.shape == result.zero.shape == scales
    assert torch.equal(result.zero, result.zero.round())
    step = result.scale.expand(3, -1).repeat_interleave(24 // scales[1], dim=1)
    slack = 0.51 if symmetric else 1.01  # a rounded zero point moves an end of the range by up to half a step more
    assert ((result.dequantize() - x).abs() <= slack * step).all()
    zeros = quantize_integers(torch.tensor([[0.0, 3.0, 7.0, 0.0]]), bits, "channel", symmetric=symmetric).dequantize()
    assert zeros[0, 0] == 0.0


def test_asymmetric_integers_spend_no_code_on_values_that_do_not_occur() -> None:
    x = torch.rand(4, 64)
    error = {
        symmetric: (quantize_integers(x, 3, "channel", symmetric=symmetric).dequantize() - x).square().mean()
        for symmetric in (True, False)
    }
    assert error[False] < error[True] / 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, "channel", None), "1 bits"),
        ((8, "column", None), "unknown granularity 'column'; known: tensor, channel, token, group"),
        ((8, "group", None), "have a size"),
        ((8, "token", 4), "have a size"),
        ((8, "group", 5), "groups of 5 do not divide 8 columns"),
    ],
)
def test_integers_refuse(arguments: tuple[int, str, int | None], message: str) -> None:
    bits, granularity, group_size = arguments
    with pytest.raises(ConfigError, match=message):
        quantize_integers(torch.ones(2, 8), bits, granularity, group_size=group_size)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="NaN or infinite"):
        quantize_integers(torch.tensor([[1.0, torch.nan]]), 8, "channel")
