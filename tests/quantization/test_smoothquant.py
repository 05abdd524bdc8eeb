"""SmoothQuant: it finds the outlier channels and takes them out of 8-bit activations."""

import pytest
import torch

from infra_lab.errors import ConfigError
from infra_lab.quantization.grouped import rtn
from infra_lab.quantization.layers import linear_of
from infra_lab.quantization.observers import AbsMax
from infra_lab.quantization.smoothquant import outlier_channels, smoothing_factors

OUTLIERS = [50, 3]


def activations() -> torch.Tensor:
    x = torch.randn(200, 64, generator=torch.Generator().manual_seed(0))
    x[:, 50] *= 100
    x[:, 3] *= 40
    return x


def largest_of(x: torch.Tensor) -> torch.Tensor:
    observer = AbsMax()
    for batch in x.split(60):
        observer.observe(batch)
    return observer.channels


def w8a8_error(x: torch.Tensor, w: torch.Tensor, factors: torch.Tensor) -> float:
    """Relative error of the output, against float64."""
    weight = rtn(w * factors, 8, w.shape[1], symmetric=True)
    layer = linear_of(weight, None, torch.device("cpu"), torch.float32, int8_activations=True)
    expected = x.double() @ w.double().t()
    return float((layer(x / factors) - expected).norm() / expected.norm())


def test_outlier_channels_are_found_largest_first() -> None:
    largest = largest_of(activations())
    assert torch.equal(largest, activations().abs().amax(dim=0))
    assert outlier_channels(largest).tolist() == OUTLIERS
    assert outlier_channels(largest, ratio=60).tolist() == [50]
    assert outlier_channels(torch.ones(8)).tolist() == []


def test_smoothing_takes_the_outliers_out_of_the_error() -> None:
    x, w = activations(), torch.randn(32, 64, generator=torch.Generator().manual_seed(1))
    w[:, OUTLIERS] *= 0.02  # as in real models, where what is large comes out of small weights
    plain = w8a8_error(x, w, torch.ones(64))
    factors = smoothing_factors(largest_of(x), w.abs().amax(dim=0))
    assert w8a8_error(x, w, factors) < plain / 3
    assert outlier_channels(largest_of(x / factors)).tolist() == []


def test_the_formula_and_its_two_ends() -> None:
    x_largest, w_largest = torch.tensor([8.0, 2.0, 0.0, 3.0]), torch.tensor([0.5, 2.0, 1.0, 0.0])
    factors = smoothing_factors(x_largest, w_largest, 0.5)
    assert torch.allclose(factors, torch.tensor([4.0, 1.0, 1.0, 1.0]))  # √(8 / 0.5), √(2 / 2); nothing to balance: 1
    assert torch.allclose((x_largest / factors)[:2], (w_largest * factors)[:2])  # ½: equally large on both sides
    assert torch.allclose(smoothing_factors(x_largest, w_largest, 1.0)[:2], x_largest[:2])
    assert torch.allclose(smoothing_factors(x_largest, w_largest, 0.0)[:2], 1 / w_largest[:2])
    with pytest.raises(ConfigError, match=r"gate_up: smoothing with alpha 1\.5"):
        smoothing_factors(x_largest, w_largest, 1.5, name="gate_up")
