"""KV formats: error bounds that follow from the formats, and the case that per-channel keys exist for."""

import pytest
import torch

from infra_lab.errors import ConfigError
from infra_lab.quantization.kv import KV_FORMATS, kv_round_trip


def kv(outlier: float = 1.0) -> torch.Tensor:
    x = torch.randn(200, 2, 3, 32, generator=torch.Generator().manual_seed(0))
    x[:, 0, :, 5] *= outlier
    return x


@pytest.mark.parametrize(("kv_format", "steps"), [("int8", 127), ("int4", 7)])
def test_integers_are_off_by_half_a_step_at_most(kv_format: str, steps: int) -> None:
    x = kv()
    step = x.abs().amax(dim=-1, keepdim=True) / steps
    assert ((kv_round_trip(x, kv_format) - x).abs() <= step / 2 + 1e-6).all()


def test_fp8_keeps_four_significant_bits() -> None:
    x = kv()
    largest = x.abs().amax(dim=-1, keepdim=True)
    is_normal = x.abs() > largest * 2**-6 / 448  # below that e4m3 has fewer digits
    error = ((kv_round_trip(x, "fp8") - x).abs() / x.abs())[is_normal]
    assert error.max() <= 2**-4 + 1e-6


def test_a_channel_of_large_keys_spoils_its_neighbours_unless_keys_are_scaled_by_channel() -> None:
    x = kv(outlier=40.0)
    others = [d for d in range(32) if d != 5]

    def error(kv_format: str) -> float:
        off = kv_round_trip(x, kv_format)[:, 0, :, others] - x[:, 0, :, others]
        return float(off.square().mean() / x[:, 0, :, others].square().mean())

    assert error("int4") > 0.5  # most of what the other channels said is lost
    assert error("int4-channel-keys") < 0.05


@pytest.mark.parametrize("kv_format", KV_FORMATS)
def test_shape_dtype_and_zeros(kv_format: str) -> None:
    x = kv().to(torch.bfloat16)
    y = kv_round_trip(x, kv_format)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    assert torch.equal(kv_round_trip(torch.zeros(4, 2, 1, 8), kv_format), torch.zeros(4, 2, 1, 8))


def test_unknown_format() -> None:
    with pytest.raises(ConfigError, match=r"unknown KV format .int2.; known: fp8, int8"):
        kv_round_trip(kv(), "int2")
