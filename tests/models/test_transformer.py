"""Our transformer gives transformers' logits, for every architecture, option and way of cutting the prompt."""

from pathlib import Path
from typing import Any

import pytest
import torch

from infra_lab.quantization import LinearScheme
from infra_lab.quantization.recipes import RECIPES
from tests.models.hf_models import load_folder, logits_of, random_model

SHAPES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"num_key_value_heads": 6, "tie_word_embeddings": True}),
    ("llama", {"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True}),
    ("llama", {"head_dim": 32, "rms_norm_eps": 1e-3}),
    ("qwen2", {"tie_word_embeddings": True}),
    ("qwen2", {"num_attention_heads": 12, "num_key_value_heads": 4}),
    ("qwen3", {"head_dim": 24}),
    ("qwen3", {"head_dim": 16, "tie_word_embeddings": True, "attention_bias": True}),
]
ROPES: list[dict[str, Any]] = [
    {"rope_type": "default", "rope_theta": 500.0},
    {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0},
    {
        "rope_type": "llama3",
        "rope_theta": 10_000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 64},
    {
        "rope_type": "yarn",
        "rope_theta": 10_000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "mscale": 0.7,
        "mscale_all_dim": 1.3,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "truncate": False,
    },
]
TOKENS = [(7 * i * i + 3 * i) % 300 for i in range(150)]


def assert_same_logits(tmp_path: Path, architecture: str, options: dict[str, Any]) -> None:
    theirs = random_model(architecture, **options)
    theirs.save_pretrained(tmp_path)
    ours = load_folder(tmp_path)
    with torch.no_grad():
        expected = theirs(torch.tensor([TOKENS])).logits[0]  # [T, V]
    assert expected.std() > 0.1  # logits that are all alike would prove nothing
    for chunks in ([150], [1, 16, 33, 100], [16] * 9 + [1] * 6):
        assert (logits_of(ours, TOKENS, chunks) - expected).abs().max() < 1e-3


@pytest.mark.parametrize(("architecture", "options"), SHAPES, ids=str)
def test_logits_equal_transformers(tmp_path: Path, architecture: str, options: dict[str, Any]) -> None:
    assert_same_logits(tmp_path, architecture, options)


@pytest.mark.parametrize("rope", ROPES, ids=lambda rope: rope["rope_type"])
def test_logits_equal_transformers_with_scaled_rope(tmp_path: Path, rope: dict[str, Any]) -> None:
    assert_same_logits(tmp_path, "llama", {"rope_parameters": rope})


def test_bfloat16_stays_close_to_float32(tmp_path: Path) -> None:
    random_model("qwen3", head_dim=24).save_pretrained(tmp_path)
    exact = logits_of(load_folder(tmp_path), TOKENS)
    rough = logits_of(load_folder(tmp_path, dtype=torch.bfloat16), TOKENS).float()
    assert (rough - exact).abs().mean() < 0.05 * exact.std()


@pytest.mark.parametrize(
    ("name", "limit"),
    [("int8", 0.05), ("rtn-int4-g32", 0.35), ("w8a8", 0.1), ("fp8", 0.2), ("nf4", 0.5), ("mxfp4", 0.5), ("nvfp4", 0.4)],
)
def test_quantized_weights_stay_close(tmp_path: Path, name: str, limit: float) -> None:
    scheme = LinearScheme(RECIPES[name])
    random_model("llama", tie_word_embeddings=True).save_pretrained(tmp_path)
    exact = logits_of(load_folder(tmp_path), TOKENS)
    rough = logits_of(load_folder(tmp_path, scheme, torch.bfloat16), TOKENS, [140] + [1] * 10).float()
    assert (rough - exact).abs().mean() < limit * exact.std()
