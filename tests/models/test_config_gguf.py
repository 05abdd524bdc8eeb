"""GGUF key-values become the configuration that transformers has for the same model."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from infra_lab.errors import CorruptModelError, UnsupportedModelError
from infra_lab.models.config import ModelConfig, RopeScaling
from infra_lab.models.gguf_checkpoint import GGUFCheckpoint
from infra_lab.models.hf_config import config_from_folder
from tests.models.gguf_samples import write_gguf
from tests.models.hf_models import random_model


def gguf_config(tmp_path: Path, model: Any, **options: Any) -> ModelConfig:
    return GGUFCheckpoint(write_gguf(tmp_path / "model.gguf", model, **options)).config


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("llama", {"rms_norm_eps": 0.5, "rope_theta": 500_000.0}),
        ("llama", {"head_dim": 32, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
        ("qwen2", {"num_key_value_heads": 6}),
        ("qwen3", {"head_dim": 24, "attention_bias": True}),
    ],
)
def test_same_as_from_the_folder(tmp_path: Path, architecture: str, options: dict[str, Any]) -> None:
    model = random_model(architecture, **options)
    model.save_pretrained(tmp_path)
    from_folder = config_from_folder(tmp_path)
    from_gguf = gguf_config(tmp_path, model)
    # The file stores epsilon as float32; it has no bos here.
    assert from_gguf.rms_norm_eps == float(np.float32(from_folder.rms_norm_eps))
    assert replace(from_gguf, rms_norm_eps=from_folder.rms_norm_eps, bos_token_id=1) == from_folder


def test_end_tokens_of_all_kinds_and_bos(tmp_path: Path) -> None:
    kinds = {"eos": 7, "eot": 8, "eom": 7, "bos": 3}
    keys = {f"tokenizer.ggml.{kind}_token_id": token_id for kind, token_id in kinds.items()}
    config = gguf_config(tmp_path, random_model("llama"), keys=keys)
    assert config.eos_token_ids == (7, 8)
    assert config.bos_token_id == 3


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, None),
        ({"type": "none", "factor": 4.0}, None),
        ({"type": "linear", "factor": 1.0}, None),
        ({"type": "linear", "factor": 4.0}, RopeScaling(kind="linear", factor=4.0, original_max_position=256)),
        ({"factor": 4.0}, RopeScaling(kind="linear", factor=4.0, original_max_position=256)),
        (
            {"type": "yarn", "factor": 4.0, "original_context_length": 64, "yarn_beta_fast": 16.0},
            RopeScaling(kind="yarn", factor=4.0, original_max_position=64, beta_fast=16.0),
        ),
    ],
)
def test_rope_scaling_keys(tmp_path: Path, keys: dict[str, Any], expected: RopeScaling | None) -> None:
    keys = {"{arch}.rope.scaling." + key: value for key, value in keys.items()}
    assert gguf_config(tmp_path, random_model("qwen2"), keys=keys).rope_scaling == expected


def llama3_model(**scaling: Any) -> tuple[Any, dict[str, np.ndarray]]:
    """A model with Llama 3's scaling, and the divisors that llama.cpp's converter writes for it."""
    rope = {"rope_type": "llama3", "rope_theta": 500_000.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope |= {"factor": 32.0, "original_max_position_embeddings": 8192} | scaling
    options = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1}
    model = random_model("llama", rope_parameters=rope, max_position_embeddings=131_072, **options)
    plain = 500_000.0 ** -(torch.arange(0, 64, 2) / 64)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](model.config, torch.device("cpu"))
    return model, {"rope_freqs.weight": (plain / scaled).numpy()}


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3_scaling_is_found_from_its_divisors(tmp_path: Path, factor: float) -> None:
    model, divisors = llama3_model(factor=factor)
    scaling = gguf_config(tmp_path, model, extra_tensors=divisors).rope_scaling
    assert scaling is not None
    assert scaling == RopeScaling(kind="llama3", factor=pytest.approx(factor), original_max_position=8192)


def test_other_divisors_are_refused_rather_than_guessed(tmp_path: Path) -> None:
    model, divisors = llama3_model(high_freq_factor=8.0)
    with pytest.raises(UnsupportedModelError, match=r"rope_freqs.weight is not what Llama 3's scaling gives"):
        gguf_config(tmp_path, model, extra_tensors=divisors)
    with pytest.raises(CorruptModelError, match=r"rope_freqs.weight.* shape \[5\].* \[32\]"):
        gguf_config(tmp_path, model, extra_tensors={"rope_freqs.weight": np.ones(5, dtype=np.float32)})
    ones = {"rope_freqs.weight": np.ones(32, dtype=np.float32)}
    assert gguf_config(tmp_path, model, extra_tensors=ones).rope_scaling is None


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"general.architecture": "bloom"}, "'bloom': the engine runs llama, qwen2, qwen3"),
        ({"{arch}.expert_count": 8}, "mixture-of-experts"),
        ({"{arch}.attention.causal": False}, "only causal"),
        ({"{arch}.attention.sliding_window": 128}, "sliding-window"),
        ({"{arch}.attention.value_length": 32}, "must equal the size of a key head, 16"),
        ({"{arch}.rope.dimension_count": 8}, "must equal the size of a key head, 16"),
        ({"{arch}.attention.head_count": [6, 6, 3]}, "layers of different sizes"),
        ({"{arch}.rope.scaling.type": "longrope"}, "'longrope'"),
        (
            {
                "{arch}.rope.scaling.type": "yarn",
                "{arch}.rope.scaling.factor": 2.0,
                "{arch}.rope.scaling.attn_factor": 2.0,
            },
            "only YaRN as in its paper",
        ),
    ],
)
def test_unsupported_options_are_named(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    # A qwen2 file where the arch is renamed keeps its other keys under the old name; the name is refused first.
    path = tmp_path / "model.gguf"
    if "general.architecture" in keys:
        write_gguf(path, random_model("llama"))
        path.write_bytes(path.read_bytes().replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0bloom", 1))
    else:
        write_gguf(path, random_model("llama"), keys=keys)
    with pytest.raises(UnsupportedModelError, match=message) as caught:
        GGUFCheckpoint(path)
    assert "model.gguf" in str(caught.value)


def test_one_number_a_layer_is_fine_when_all_are_equal(tmp_path: Path) -> None:
    config = gguf_config(tmp_path, random_model("llama"), keys={"{arch}.feed_forward_length": [160, 160, 160]})
    assert config.intermediate_size == 160


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("{arch}.block_count", None, "no key 'llama.block_count'"),
        ("{arch}.block_count", 0, "num_layers is 0"),
        ("{arch}.block_count", "three", "'three', expected a whole number"),
        ("{arch}.block_count", True, "True, expected a whole number"),
        ("{arch}.attention.head_count", 0, "num_heads is 0"),
        ("{arch}.attention.head_count_kv", 4, "multiple of num_kv_heads, 4"),
        ("{arch}.rope.freq_base", float("nan"), "rope.freq_base' is nan"),
        ("{arch}.rope.freq_base", -1.0, "rope_theta is -1.0"),
        ("{arch}.attention.layer_norm_rms_epsilon", float("inf"), "epsilon' is inf"),
        ("{arch}.rope.scaling.factor", -2.0, "factor is -2.0"),
        ("tokenizer.ggml.eos_token_id", "x", "'x', expected a whole number"),
    ],
)
def test_impossible_values_are_named(tmp_path: Path, key: str, value: Any, message: str) -> None:
    with pytest.raises(CorruptModelError, match=r"model\.gguf.*fetch.* again") as caught:
        gguf_config(tmp_path, random_model("llama"), keys={key: value})
    assert message in str(caught.value)


def test_vocabulary_without_a_token_list(tmp_path: Path) -> None:
    keys = {"tokenizer.ggml.tokens": None, "{arch}.vocab_size": 300}
    assert gguf_config(tmp_path, random_model("llama"), keys=keys).vocab_size == 300
