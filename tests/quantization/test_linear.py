"""Quantized linear layers against float64 of the weights that they stand for."""

import pytest
import torch

import kernels
from infra_lab.quantization import linear_of
from infra_lab.quantization.cpu_int4 import has_int4_kernel, pack_cpu_int4, unpack_cpu_int4
from infra_lab.quantization.float_weights import quantize_fp8_weight, quantize_to_table
from infra_lab.quantization.grouped import GroupedInt, rtn
from infra_lab.quantization.linear import Int8Linear, has_int8_kernel
from infra_lab.quantization.linear_int4 import Int4Linear, MiddleGroups, W4A16Linear, middle_groups
from infra_lab.quantization.linear_joined import JoinedLinear
from infra_lab.quantization.linear_split_int8 import SplitInt8Linear
from infra_lab.quantization.linear_tiled import TiledLinear
from infra_lab.quantization.linear_w8a8 import Float8Linear, Int8ActivationLinear, integer_product
from infra_lab.quantization.schemes import LinearScheme

CPU = torch.device("cpu")
BFLOAT16 = 2.0**-8
"""Relative distance of neighbours."""


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def check(y: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, epsilon: float) -> None:
    """y = x · weightᵀ + bias, each product and the sum off by some epsilons at most."""
    expected = x.double() @ weight.double().t() + (0 if bias is None else bias.double())
    size = x.double().abs() @ weight.double().abs().t() + (0 if bias is None else bias.double().abs())
    slack = 2 * epsilon * expected.abs() + epsilon * size / weight.shape[1] ** 0.5 * 4
    assert ((y.double() - expected).abs() <= slack).all()


def check_middle_groups(stored: MiddleGroups, weight: GroupedInt) -> None:
    """The codes are the same but for a shift, and scale and middle are off by their rounding to bfloat16 at most."""
    shift = 8 - 2 ** (weight.bits - 1)
    assert torch.equal(stored.q, weight.q + shift)
    exact = middle_groups(weight)
    grouped = exact.q.view(*exact.scale.shape, -1).double() - 8
    slack = (grouped.abs() * exact.scale.unsqueeze(2) + exact.middle.abs().unsqueeze(2)) * BFLOAT16
    off = stored.dequantize(torch.float64) - weight.dequantize(torch.float64)
    assert (off.abs() <= slack.view(off.shape) + 1e-6).all()
    half_a_step = 0.5 * weight.scale.unsqueeze(2)
    assert (slack < half_a_step).all()  # which is what quantization itself costs


def bias_of(wanted: bool, dtype: torch.dtype, size: int = 64) -> torch.Tensor | None:
    return normal(size, seed=9).to(dtype) if wanted else None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("num_rows", [1, 3, 40])
@pytest.mark.parametrize("with_bias", [False, True])
def test_int8_equals_its_dequantized_weights(num_rows: int, with_bias: bool, dtype: torch.dtype) -> None:
    weight, bias = normal(64, 96).to(dtype), bias_of(with_bias, dtype)
    layer = Int8Linear(weight, bias)
    stored = layer.quantized.double() * layer.scale.double().unsqueeze(1)
    assert ((stored - weight.double()).abs() <= 0.51 * layer.scale.double().unsqueeze(1) + 1e-9).all()
    x = normal(num_rows, 96, seed=1).to(dtype)
    check(layer(x), x, stored, bias, BFLOAT16)
    assert layer.rows(torch.tensor([3, 0])).dtype is dtype
    torch.testing.assert_close(layer.rows(torch.tensor([5, 5]))[1].double(), stored[5], atol=1e-6, rtol=BFLOAT16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("num_rows", [1, 3, 40])
@pytest.mark.parametrize(("bits", "group_size"), [(4, 32), (4, 128), (3, 64), (2, 32)])
def test_groups_equal_their_dequantized_weights(num_rows: int, bits: int, group_size: int, dtype: torch.dtype) -> None:
    weight, bias = rtn(normal(64, 128) + 0.2, bits, group_size), bias_of(True, dtype)
    layer = linear_of(weight, bias, CPU, dtype)
    assert isinstance(layer, Int4Linear)
    check_middle_groups(layer.weights(), weight)
    x = normal(num_rows, 128, seed=1).to(dtype)
    check(layer(x), x, layer.weights().dequantize(torch.float64), bias, BFLOAT16)
    assert layer.weight_bytes == 64 * 128 // 2 + 64 * 128 // group_size * 4


def test_widths_that_the_kernel_does_not_take_are_widened_in_tiles() -> None:
    for weight in (rtn(normal(50, 64), 4, 32), rtn(normal(64, 96), 4, 48), rtn(normal(64, 64), 6, 32)):
        layer = linear_of(weight, None, CPU, torch.bfloat16)
        assert isinstance(layer, TiledLinear)
        x = normal(2, weight.shape[1], seed=1).to(torch.bfloat16)
        check(layer(x), x, weight.dequantize(torch.float64), None, BFLOAT16)


def test_a_grid_of_sixteen_levels_survives_int4() -> None:
    """Weights from a 4-bit file (GGUF's Q4_1: scale · q + min in groups of 32) are recovered, not degraded."""
    q = torch.randint(0, 16, (16, 64))
    q[:, ::32], q[:, 1::32] = 0, 15
    weight = q * 0.25 - 2.0
    layer = linear_of(rtn(weight, 4, 32), None, CPU, torch.bfloat16)
    assert torch.equal(layer(torch.eye(64).to(torch.bfloat16)).float().T, weight.float())


@pytest.mark.parametrize("num_rows", [16, 48, 64, 80, 8192])
def test_the_kernels_layout_is_read_back(num_rows: int) -> None:
    assert has_int4_kernel()
    q = torch.randint(0, 16, (num_rows, 64)).to(torch.uint8)
    packed = pack_cpu_int4(q)
    assert torch.equal(packed, torch._convert_weight_to_int4pack_for_cpu(q.to(torch.int32), 1))
    assert torch.equal(unpack_cpu_int4(packed), q)
    indices = torch.tensor([num_rows - 1, 0, 7, 7])
    assert torch.equal(unpack_cpu_int4(packed, indices), q[indices])


@pytest.mark.parametrize("num_rows", [1, 40])
def test_split_int8_keeps_every_code_and_serves_as_an_embedding(num_rows: int) -> None:
    weight = rtn(normal(96, 64), 8, 32, symmetric=True)
    weight.q[0, 0], weight.q[1, 1] = 0, 255  # -128 and 127
    bias = bias_of(True, torch.bfloat16, 96)
    layer = linear_of(weight, bias, CPU, torch.bfloat16)
    assert isinstance(layer, SplitInt8Linear)
    assert torch.equal(layer.weights().q, weight.q)
    x = normal(num_rows, 64, seed=1).to(torch.bfloat16)
    check(layer(x), x, weight.dequantize(torch.float64), bias, BFLOAT16)
    indices = torch.tensor([95, 0, 0, 40])
    torch.testing.assert_close(
        layer.rows(indices).double(), weight.dequantize(torch.float64)[indices], rtol=2 * BFLOAT16, atol=0
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("format", ["nf4", "mxfp4", "nvfp4", "fp8"])
@pytest.mark.parametrize("num_rows", [1, 40])
def test_small_floats_equal_their_dequantized_weights(format: str, num_rows: int, dtype: torch.dtype) -> None:
    w = normal(72, 4160)  # more than one tile, the last of them shorter
    bias, x = bias_of(True, dtype, 72), normal(num_rows, 4160, seed=1).to(dtype)
    if format == "fp8":
        weight = quantize_fp8_weight(w)
        layer = Float8Linear(weight, bias, input_scale=2.0**-6)
        x = (x.float() * 64).to(torch.float8_e4m3fn).float() / 64  # what FP8 holds, so that only the product is checked
        x = x.to(dtype)
    else:
        weight = quantize_to_table(w, format)
        layer = linear_of(weight, bias, CPU, dtype)
        assert layer.weight_bytes == pytest.approx(
            w.numel() * {"nf4": 4.5, "mxfp4": 4.25, "nvfp4": 4.5}[format] / 8 + 4
        )
    check(layer(x), x, weight.dequantize(torch.float64), bias, BFLOAT16 if dtype is torch.bfloat16 else 2.0**-20)


@pytest.mark.parametrize("num_rows", [1, 40])
@pytest.mark.parametrize("num_in", [96, 2080])
def test_w8a8_multiplies_what_its_activations_were_rounded_to(num_rows: int, num_in: int) -> None:
    weight = rtn(normal(64, num_in), 8, num_in, symmetric=True)
    bias = bias_of(True, torch.float32)
    layer = linear_of(weight, bias, CPU, torch.float32, int8_activations=True)
    assert isinstance(layer, Int8ActivationLinear)
    x = normal(num_rows, num_in, seed=1) * torch.logspace(-3, 3, num_rows).unsqueeze(1)
    scale = x.abs().amax(dim=1, keepdim=True) / 127
    rounded = (x / scale).round() * scale
    check(layer(x), rounded, weight.dequantize(torch.float64), bias, BFLOAT16 if num_rows == 1 else 2.0**-18)


def test_integer_products_are_exact() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randint(-127, 128, (3, 1024), generator=generator, dtype=torch.int8)
    b = torch.randint(-127, 128, (300, 1024), generator=generator, dtype=torch.int8)
    a[0], b[0] = 127, 127  # the largest sum that there is
    a[1, 1:], b[1] = 127, 127
    assert torch.equal(integer_product(a, b).long(), a.long() @ b.long().t())


def test_fp8_dynamic_rounds_each_token_on_its_own_scale() -> None:
    weight = quantize_fp8_weight(normal(64, 96))
    x = normal(5, 96, seed=1) * torch.logspace(-3, 3, 5).unsqueeze(1)
    scale = x.abs().amax(dim=1, keepdim=True) / 448
    rounded = (x / scale).to(torch.float8_e4m3fn).float() * scale
    layer = linear_of(weight, None, CPU, torch.float32)
    check(layer(x), rounded, weight.dequantize(torch.float64), None, 2.0**-3 / 448)  # a tie may fall to either side
    static = linear_of(weight, None, CPU, torch.float32, input_scale=1.0 / 448)
    saturated = static(torch.full((1, 96), 50.0))
    check(saturated, torch.ones(1, 96), weight.dequantize(torch.float64), None, 2.0**-18)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("num_rows", [1, 70])
def test_w4a16_with_zero_points_that_are_no_integers(symmetric: bool, num_rows: int) -> None:
    weight = rtn(normal(64, 128) + 0.3, 4, 32, symmetric=symmetric)
    bias = bias_of(True, torch.bfloat16)
    layer = W4A16Linear(middle_groups(weight), bias, torch.bfloat16)
    assert (layer.rest is None) == symmetric
    check_middle_groups(layer.weights(), weight)
    x = normal(num_rows, 128, seed=1).to(torch.bfloat16)
    check(layer(x), x, layer.weights().dequantize(torch.float64), bias, BFLOAT16)


def test_where_kernels_launch_they_are_what_runs() -> None:
    """The interpreter stands in for the GPU: the same layers, through the Triton kernels."""
    x = normal(2, 64, seed=1).to(torch.bfloat16)
    with kernels.use("triton"):
        grouped = rtn(normal(32, 64), 4, 32)
        layer = linear_of(grouped, None, CPU, torch.bfloat16)
        assert isinstance(layer, W4A16Linear)
        check(layer(x), x, grouped.dequantize(torch.float64), None, BFLOAT16)
        whole_rows = rtn(normal(32, 64), 8, 64, symmetric=True)
        layer = linear_of(whole_rows, None, CPU, torch.bfloat16, int8_activations=True)
        fp8 = linear_of(quantize_fp8_weight(normal(32, 64)), None, CPU, torch.bfloat16)
        by_kernel = [layer(x), fp8(x)]
    for ours, kernel in zip([layer(x), fp8(x)], by_kernel, strict=True):
        torch.testing.assert_close(ours, kernel, rtol=2 * BFLOAT16, atol=0.02)


def test_joined_rows() -> None:
    parts = [rtn(normal(32, 64), 4, 32), rtn(normal(16, 64, seed=2), 8, 32, symmetric=True)]
    bias = bias_of(True, torch.bfloat16, 48)
    layer = LinearScheme().build_joined(parts, bias, "qkv", dtype=torch.bfloat16)
    assert isinstance(layer, JoinedLinear)
    x = normal(3, 64, seed=1).to(torch.bfloat16)
    check(layer(x), x, torch.cat([part.dequantize(torch.float64) for part in parts]), bias, BFLOAT16)


def test_a_kernel_that_is_missing_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> torch.Tensor:
        raise NotImplementedError

    for probe in (has_int8_kernel, has_int4_kernel):
        probe.cache_clear()
    try:
        with monkeypatch.context() as patch:
            patch.setattr(torch, "_weight_int8pack_mm", missing)
            patch.setattr(torch, "_weight_int4pack_mm_for_cpu", missing)
            weight = rtn(normal(64, 64), 4, 32)
            layer = linear_of(weight, None, CPU, torch.bfloat16)
            x = normal(2, 64, seed=1).to(torch.bfloat16)
            check(layer(x), x, weight.dequantize(torch.float64), None, BFLOAT16)
            int8 = Int8Linear(normal(64, 64))
            check(int8(x), x, int8.rows(torch.arange(64)), None, BFLOAT16)
    finally:
        for probe in (has_int8_kernel, has_int4_kernel):
            probe.cache_clear()


def test_gpu_only_values_survive_a_group_of_one_value() -> None:
    weight = GroupedInt(torch.zeros(16, 32, dtype=torch.uint8), torch.ones(16, 1), torch.full((16, 1), -0.5), 4, 32)
    layer = W4A16Linear(middle_groups(weight), None, torch.bfloat16)  # its zero point, -0.5, is far from 0 … 15
    x = normal(2, 32, seed=1).to(torch.bfloat16)
    check(layer(x), x, torch.full((16, 32), 0.5), None, BFLOAT16)
