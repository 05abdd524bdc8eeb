"""8-bit quantization: the nearest value of each grid, found by looking at all of them, and agreement to the bit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kernels
from kernels.quantize import FLOOR, MAX_COLUMNS_IN_REGISTERS, quantize_fp8, quantize_int8
from tests.kernels.conftest import DEVICE, poisoned
from tests.kernels.strided import spread_rows

DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
SHAPES = st.tuples(st.integers(0, 5), st.integers(1, 1100))
SCALES = st.sampled_from([1e-6, 1.0, 1e4])
QUANTIZERS = {127.0: quantize_int8, 448.0: quantize_fp8}


def grid(limit: float) -> torch.Tensor:
    """All values of the format, ascending, float64."""
    if limit == 127.0:
        return torch.arange(-127, 128, dtype=torch.float64, device=DEVICE)
    values = torch.arange(256, dtype=torch.uint8, device=DEVICE).view(torch.float8_e4m3fn).double()
    return values[values.isfinite()].unique()


def check(x: torch.Tensor, limit: float) -> None:
    with poisoned():
        values, scales = QUANTIZERS[limit](x)
    with kernels.use("reference"):
        same_values, same_scales = QUANTIZERS[limit](x)
    assert torch.equal(values.view(torch.uint8), same_values.view(torch.uint8))
    assert torch.equal(scales, same_scales)
    assert values.shape == x.shape
    assert scales.shape == (*x.shape[:-1], 1)
    if not x.numel():
        return
    largest = x.double().abs().amax(-1, keepdim=True).clamp_min(FLOOR)
    torch.testing.assert_close(scales.double(), largest / limit, atol=0, rtol=1e-6)
    stretched, known = x.double() * (limit / largest), grid(limit)
    above = torch.searchsorted(known, stretched.contiguous()).clamp(1, len(known) - 1)
    nearest = torch.minimum((known[above] - stretched).abs(), (known[above - 1] - stretched).abs())
    assert ((values.double() - stretched).abs() <= nearest + 2e-7 * stretched.abs()).all()
    peaks = x.double().abs() == largest
    assert (values.double()[peaks].abs() == limit).all()


@settings(max_examples=80, deadline=None)
@given(st.sampled_from([127.0, 448.0]), SHAPES, DTYPES, SCALES, st.integers(0, 7), st.integers(0, 2**31))
def test_the_nearest_value(
    limit: float, shape: tuple[int, int], dtype: torch.dtype, scale: float, gap: int, seed: int
) -> None:
    x = spread_rows(shape, dtype, scale, gap, seed)
    check(x.nan_to_num() if dtype is torch.float16 else x, limit)  # 1e4 · randn may pass float16's largest


@pytest.mark.parametrize("limit", QUANTIZERS)
def test_rows_longer_than_the_registers(limit: float) -> None:
    x = spread_rows((2, MAX_COLUMNS_IN_REGISTERS + 777), torch.bfloat16, 1.0, 5, 0)
    x[0, -1] = -50.0  # the largest comes last, and is negative
    check(x, limit)


@pytest.mark.parametrize("limit", QUANTIZERS)
def test_rows_of_zeros_of_hardly_anything_and_of_the_largest_numbers(limit: float) -> None:
    x = torch.tensor([[0.0, -0.0, 0.0], [1e-44, -1e-40, 0.0], [3e38, -3.4e38, 1.0]], device=DEVICE)
    values, scales = QUANTIZERS[limit](x)
    assert values[:2].double().abs().max() == 0
    assert values[2].tolist() == [round(3 / 3.4 * limit) if limit == 127.0 else 384.0, -limit, 0]
    assert (scales > 0).all()
    assert scales.isfinite().all()


def test_fp8_rounds_as_torch_casts() -> None:
    """Every value of E4M3, every middle between two, and the float32 next to them on both sides."""
    known = grid(448.0)
    middles = (known[1:] + known[:-1]) / 2
    points = torch.cat([known, middles]).float()
    infinity = torch.tensor(float("inf"), device=DEVICE)
    x = torch.cat([points, torch.nextafter(points, infinity), torch.nextafter(points, -infinity)]).clamp(-448, 448)
    values, scales = quantize_fp8(x)
    assert scales.item() == 1.0
    assert torch.equal(values.view(torch.uint8), x.to(torch.float8_e4m3fn).view(torch.uint8))


def test_int8_rounds_half_to_even() -> None:
    x = torch.tensor([127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5], device=DEVICE)
    assert quantize_int8(x)[0].tolist() == [127, 0, 2, 2, 0, -2, -2, 126]


@pytest.mark.parametrize("limit", QUANTIZERS)
def test_what_cannot_be_quantized_is_refused(limit: float) -> None:
    for bad in (torch.tensor(1.0), torch.ones(2, 0), torch.ones(2, 2, dtype=torch.int32)):
        with pytest.raises(ValueError, match=r"must be \[..., H\]"):
            QUANTIZERS[limit](bad.to(DEVICE))
    with pytest.raises(ValueError, match="compute no gradients"):
        QUANTIZERS[limit](torch.ones(2, 2, device=DEVICE, requires_grad=True))
