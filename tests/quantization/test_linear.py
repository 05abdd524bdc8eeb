"""Quantized linear layers against float64 of the weights that they stand for."""

import pytest
import torch

from infra_lab.errors import ConfigError
from infra_lab.quantization import LinearScheme, parse_scheme
from infra_lab.quantization.linear import Int4Linear, Int8Linear

CPU = torch.device("cpu")


@pytest.mark.parametrize("num_rows", [1, 3, 40])
@pytest.mark.parametrize("with_bias", [False, True])
def test_int8_equals_its_dequantized_weights(num_rows: int, with_bias: bool) -> None:
    weight = torch.randn(64, 96).to(torch.bfloat16)
    bias = torch.randn(64).to(torch.bfloat16) if with_bias else None
    layer = Int8Linear(weight, bias)
    stored = layer.quantized.double() * layer.scale.double().unsqueeze(1)
    assert (stored - weight.double()).abs().max() <= weight.abs().amax().double() / 127 * 0.51 + 0.02
    x = torch.randn(num_rows, 96).to(torch.bfloat16)
    expected = x.double() @ stored.T + (0 if bias is None else bias.double())
    torch.testing.assert_close(layer(x).double(), expected, atol=0.1, rtol=0.02)
    assert torch.equal(layer.rows(torch.tensor([3, 0])).double()[1], (layer.rows(torch.tensor([0])).double())[0])
    torch.testing.assert_close(layer.rows(torch.tensor([5])).double()[0], stored[5], atol=0.01, rtol=0.01)


@pytest.mark.parametrize("num_rows", [1, 3, 40])
@pytest.mark.parametrize("group_size", [32, 64])
def test_int4_equals_its_dequantized_weights(num_rows: int, group_size: int) -> None:
    weight = torch.randn(64, 128).to(torch.bfloat16)
    layer = Int4Linear(weight, group_size=group_size)
    grouped = weight.double().view(64, -1, group_size)
    step = (grouped.amax(2, keepdim=True) - grouped.amin(2, keepdim=True)) / 15
    stored = layer(torch.eye(128).to(torch.bfloat16)).double().T  # the layer's own weights, column by column
    assert ((stored.view_as(grouped) - grouped).abs() <= 0.5 * step + 0.03).all()
    x = torch.randn(num_rows, 128).to(torch.bfloat16)
    torch.testing.assert_close(layer(x).double(), x.double() @ stored.T, atol=0.15, rtol=0.02)


def test_a_grid_of_sixteen_levels_survives_int4() -> None:
    """Weights from a 4-bit file (GGUF's Q4_1: scale · q + min in groups of 32) are recovered, not degraded."""
    q = torch.randint(0, 16, (16, 64))
    q[:, ::32], q[:, 1::32] = 0, 15
    weight = q * 0.25 - 2.0
    layer = Int4Linear(weight.to(torch.bfloat16), group_size=32)
    assert torch.equal(layer(torch.eye(64).to(torch.bfloat16)).float().T, weight.float())


def test_names() -> None:
    parse = lambda name: parse_scheme(name, device=CPU, dtype=torch.bfloat16)  # noqa: E731
    assert parse(None) == LinearScheme("dense")
    assert parse("int8") == LinearScheme("int8")
    assert parse("rtn-int4-g64") == LinearScheme("int4", 64)
    with pytest.raises(ConfigError, match=r"unknown quantization 'int3'; known: int8, rtn-int4-g32"):
        parse("int3")
    with pytest.raises(ConfigError, match="bfloat16 only"):
        parse_scheme("rtn-int4-g32", device=CPU, dtype=torch.float32)


def test_a_group_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"down has 96 inputs, which groups of 64 do not divide"):
        LinearScheme("int4", 64).build(torch.zeros(64, 96), None, "down")
