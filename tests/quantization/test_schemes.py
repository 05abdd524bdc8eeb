"""Names, what they build, and what they refuse."""

import pytest
import torch

from infra_lab import LLM
from infra_lab.errors import ConfigError
from infra_lab.quantization import DenseLinear, LinearScheme, parse_scheme
from infra_lab.quantization.linear import Int8Linear, PrepackedLinear
from infra_lab.quantization.linear_int4 import Int4Linear
from infra_lab.quantization.linear_tiled import TiledLinear
from infra_lab.quantization.linear_w8a8 import Float8Linear, Int8ActivationLinear
from infra_lab.quantization.recipes import RECIPES

CPU = torch.device("cpu")
LAYERS = {
    "int8": Int8Linear,
    "w8a8": Int8ActivationLinear,
    "rtn-int4-g128": Int4Linear,
    "rtn-int3-g64": Int4Linear,
    "nf4": TiledLinear,
    "mxfp4": TiledLinear,
    "nvfp4": TiledLinear,
    "fp8": Float8Linear,
}


def scheme(name: str | None) -> LinearScheme:
    return parse_scheme(name)


@pytest.mark.parametrize("name", LAYERS)
def test_each_name_builds_its_layer_and_is_close_to_the_weight(name: str) -> None:
    weight = torch.randn(64, 192, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    layer = scheme(name).build(weight, None, "down", dtype=torch.bfloat16)
    assert type(layer) is LAYERS[name]
    x = torch.randn(40, 192, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    expected = x.float() @ weight.float().t()
    error = (layer(x).float() - expected).norm() / expected.norm()
    assert error < {8: 0.05, 4: 0.13, 3: 0.25}[RECIPES[name].bits]
    assert layer.weight_bytes < weight.nbytes * 0.55


def test_names() -> None:
    assert scheme(None).is_dense
    assert isinstance(scheme(None).build(torch.zeros(16, 32), None, "o", dtype=torch.float32), DenseLinear)
    assert (RECIPES["gptq-int3-g64"].bits, RECIPES["gptq-int3-g64"].group_size) == (3, 64)
    with pytest.raises(
        ConfigError, match=r"unknown quantization 'int3'; known: int8, w8a8, .*rtn-int4-g32.*, nvfp4, fp8"
    ):
        scheme("int3")
    assert {name for name in RECIPES if not RECIPES[name].needs_calibration} <= set(RECIPES)


def test_a_recipe_that_needs_calibration_starts_from_dense_layers() -> None:
    calibrated = LinearScheme(RECIPES["gptq-int4-g128"])
    assert isinstance(calibrated.build(torch.zeros(16, 32), None, "o", dtype=torch.float32), DenseLinear)
    assert isinstance(calibrated.build_embedding(torch.ones(16, 32), dtype=torch.float32), Int8Linear)
    with pytest.raises(ConfigError, match="gptq-int4-g128 is more than rounding one matrix"):
        calibrated.quantize(torch.zeros(16, 32), "o")


def test_the_embedding_is_8_bits_and_the_tied_head_the_same_memory() -> None:
    weight = torch.randn(64, 32).to(torch.bfloat16)
    int4 = scheme("rtn-int4-g32")
    embedding = int4.build_embedding(weight, dtype=torch.bfloat16)
    assert isinstance(embedding, Int8Linear)
    assert int4.build_tied_head(embedding, dtype=torch.bfloat16) is embedding
    dense = scheme(None).build_embedding(weight, dtype=torch.bfloat16)
    head = scheme(None).build_tied_head(dense, dtype=torch.bfloat16)
    assert head is dense or isinstance(head, PrepackedLinear)


def test_a_width_without_a_group_is_refused_by_the_matrixs_name() -> None:
    with pytest.raises(ConfigError, match=r"layer 0 down: no group size up to 64 divides 100 inputs"):
        scheme("rtn-int4-g64").build(torch.zeros(64, 100), None, "layer 0 down", dtype=torch.bfloat16)
    for name in ("rtn-int4-g64", "fp8", "nf4"):
        with pytest.raises(ConfigError, match="layer 0 o has NaN or infinite weights"):
            scheme(name).build(torch.full((64, 64), torch.nan), None, "layer 0 o", dtype=torch.bfloat16)
    with pytest.raises(ConfigError, match="o has 80 inputs, which groups of 32 do not divide"):
        scheme("mxfp4").build(torch.zeros(64, 80), None, "o", dtype=torch.bfloat16)


def test_groups_that_do_not_divide_shrink_to_the_largest_that_does() -> None:
    layer = scheme("rtn-int4-g128").build(torch.randn(64, 192), None, "qkv", dtype=torch.float32)
    assert isinstance(layer, Int4Linear)
    assert layer.group_size == 64


def test_the_engines_answer_with_gguf_is_refused_for_a_folder() -> None:
    with pytest.raises(ConfigError, match=r"is no \.gguf file, so it has no blocks to keep"):
        LLM("tiny", quantization="gguf")
