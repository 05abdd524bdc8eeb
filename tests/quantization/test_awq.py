"""AWQ: the search finds the channel that matters, clipping the outlier that does not, and folding changes nothing."""

from pathlib import Path
from typing import Any

import pytest
import torch

from infra_lab.errors import ConfigError
from infra_lab.models.calibrated import Quantized, dense_layer, install
from infra_lab.models.layer_walk import MATRICES, Matrix
from infra_lab.quantization.awq import clipped_rtn, output_error, scale_factors, search_clip, search_scale
from infra_lab.quantization.folding import divide_rows, share_among_heads
from infra_lab.quantization.grouped import rtn
from infra_lab.quantization.observers import Hessian
from tests.models.hf_models import load_folder, logits_of, random_model

TOKEN_IDS = [5, 9, 250, 17, 3, 120, 44, 44, 80, 299, 0, 7]


def observed(x: torch.Tensor) -> Hessian:
    hessian = Hessian()
    hessian.observe(x)
    return hessian


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_search_protects_channels_with_large_activations() -> None:
    w, x = normal(48, 64, seed=0), normal(300, 64, seed=1)
    x[:, [7, 40]] *= 30
    seen = observed(x)
    found = search_scale(w, seen.matrix, seen.magnitudes, lambda v: rtn(v, 4, 32).dequantize())
    assert found.alpha > 0.3
    assert set(found.factors.topk(2).indices.tolist()) == {7, 40}
    plain = (x @ (w - rtn(w, 4, 32).dequantize()).t()).square().sum(dim=1).mean()
    assert found.losses[0] == pytest.approx(float(plain), rel=1e-4)  # alpha 0, computed with the inputs themselves
    assert min(found.losses) < 0.25 * float(plain)


def test_equal_channels_are_left_alone() -> None:
    w = normal(48, 64, seed=0)
    found = search_scale(w, torch.eye(64), torch.ones(64), lambda v: rtn(v, 4, 32).dequantize())
    assert torch.equal(found.factors, torch.ones(64))
    assert len({round(loss, 4) for loss in found.losses}) == 1


def test_factors_are_centred_and_a_silent_channel_counts_as_the_quietest() -> None:
    factors = scale_factors(torch.tensor([4.0, 1.0, 0.0, 16.0]), 0.5)
    assert torch.allclose(factors, torch.tensor([2.0, 1.0, 1.0, 4.0]) / 2.0)
    assert torch.equal(scale_factors(torch.zeros(3), 0.5), torch.ones(3))


def test_a_weight_that_hardly_matters_is_clipped() -> None:
    w = normal(16, 64, seed=2) * 0.1
    w[3, 5] = 2.0
    x = normal(500, 64, seed=3)
    x[:, 5] *= 0.01
    hessian = observed(x).matrix
    clip = search_clip(w, hessian, 4, 32)
    assert clip[3, 0] <= 0.6
    assert output_error(w - clipped_rtn(w, clip, 4, 32, "w").dequantize(), hessian) < 0.9 * output_error(
        w - rtn(w, 4, 32).dequantize(), hessian
    )
    untouched = clipped_rtn(w, torch.ones_like(clip), 4, 32, "w")
    assert torch.equal(untouched.q, rtn(w, 4, 32).q)
    with pytest.raises(ConfigError, match="layer 2 down has NaN"):
        clipped_rtn(w * torch.nan, clip, 4, 32, "layer 2 down")


def test_heads_that_share_a_kv_head_share_their_factor() -> None:
    shared = share_among_heads(torch.arange(12.0), num_kv_heads=2, head_dim=2)  # 3 query heads each
    assert shared.tolist() == [2, 3, 2, 3, 2, 3, 8, 9, 8, 9, 8, 9]


def test_rows_of_a_quantized_weight_are_divided_exactly() -> None:
    w, divisors = normal(8, 32, seed=0), torch.rand(8, generator=torch.Generator().manual_seed(1)) + 0.5
    expected = rtn(w, 4, 32).dequantize(torch.float64) / divisors.double().unsqueeze(1)
    assert torch.allclose(divide_rows(rtn(w, 4, 32), divisors).dequantize(torch.float64), expected, rtol=1e-6)


OPTIONS: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
}


@pytest.mark.parametrize("architecture", OPTIONS)
@pytest.mark.parametrize("matrices", [*[(m,) for m in MATRICES], MATRICES])
def test_folding_alone_leaves_the_model_as_it_was(
    tmp_path: Path, architecture: str, matrices: tuple[Matrix, ...]
) -> None:
    random_model(architecture, **OPTIONS[architecture]).save_pretrained(tmp_path)
    model = load_folder(tmp_path)
    config, expected = model.config, logits_of(model, TOKEN_IDS)
    generator = torch.Generator().manual_seed(0)
    for layer in model.layers:
        unquantized = {}
        for matrix in MATRICES:
            weight = dense_layer(layer, matrix).weight
            factors = None
            if matrix in matrices:
                factors = torch.rand(weight.shape[1], generator=generator) * 4 + 0.25
                if matrix == "o":
                    factors = share_among_heads(factors, config.num_kv_heads, config.head_dim)
            unquantized[matrix] = Quantized(weight if factors is None else weight * factors, factors)
        install(layer, unquantized, config)
        if "qkv" in matrices:
            assert not torch.allclose(layer.qkv.weight, unquantized["qkv"].dense())  # type: ignore[attr-defined]
    assert (logits_of(model, TOKEN_IDS) - expected).abs().max() < 1e-4 * expected.abs().max()
