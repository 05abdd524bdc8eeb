"""Hugging Face folders that transformers wrote: read bit for bit, and refused by name when something is wrong."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from infra_lab.errors import CorruptModelError, ModelNotFoundError, UnsupportedModelError
from infra_lab.models.config import ModelConfig
from infra_lab.models.dummy import DummyCheckpoint
from infra_lab.models.hf_folder import HFFolder
from infra_lab.models.weights import open_checkpoint
from infra_lab.models.weights_shapes import expected_shapes
from tests.models.hf_models import random_model


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    content = json.loads(path.read_text())
    for name, value in changes.items():
        if value is ...:
            content.pop(name, None)
        else:
            content[name] = value
    path.write_text(json.dumps(content))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    random_model("llama").save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
        ("qwen2", {}),
        ("qwen3", {"head_dim": 24, "attention_bias": True}),
    ],
    ids=str,
)
@pytest.mark.parametrize("max_shard_size", ["1GB", "60KB"])
def test_tensors_are_read_bit_for_bit(
    tmp_path: Path, architecture: str, options: dict[str, Any], max_shard_size: str
) -> None:
    model = random_model(architecture, **options)
    model.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    assert len(list(tmp_path.glob("*.safetensors"))) == (
        1 if max_shard_size == "1GB" else len(list(tmp_path.glob("model-*")))
    )
    checkpoint = open_checkpoint(tmp_path)
    expected = dict(model.state_dict())
    if options.get("tie_word_embeddings"):
        del expected["lm_head.weight"]
    ours = dict(checkpoint.tensors(torch.float32))
    assert ours.keys() == expected.keys() == set(checkpoint.tensor_names())
    for name, tensor in expected.items():
        assert torch.equal(ours[name], tensor), name
    for name, tensor in checkpoint.tensors(torch.bfloat16):
        assert torch.equal(tensor, expected[name].to(torch.bfloat16)), name
    config = checkpoint.config
    assert config.num_parameters == sum(tensor.numel() for tensor in expected.values())
    assert {name: tuple(tensor.shape) for name, tensor in ours.items()} == expected_shapes(config)


def test_config_is_mapped(folder: Path) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7]}))
    config = HFFolder(folder).config
    assert config == ModelConfig(
        architecture="llama",
        vocab_size=300,
        hidden_size=96,
        intermediate_size=160,
        num_layers=3,
        num_heads=6,
        num_kv_heads=2,
        head_dim=16,
        max_position=256,
        bos_token_id=1,
        eos_token_ids=(2, 7),
        torch_dtype="float32",
    )
    edit_config(folder, rope_parameters=..., rope_theta=5e5, rope_scaling={"type": "linear", "factor": 2.0})
    older = HFFolder(folder).config
    assert older.rope_theta == 5e5
    assert older.rope_scaling is not None
    assert (older.rope_scaling.kind, older.rope_scaling.factor) == ("linear", 2.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architectures": ["GPT2LMHeadModel"]},
            "'GPT2LMHeadModel' is not supported; the engine runs LlamaForCausalLM",
        ),
        ({"architectures": ...}, "architecture None is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"quantization_config": {"quant_method": "awq"}}, r"quantized \(awq\)"),
        ({"num_local_experts": 8}, "mixture-of-experts"),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, "factor": 2.0}}, "longrope"),
    ],
    ids=str,
)
def test_what_the_engine_does_not_run_is_named(folder: Path, changes: dict[str, Any], message: str) -> None:
    edit_config(folder, **changes)
    with pytest.raises(UnsupportedModelError, match=message) as caught:
        HFFolder(folder)
    assert "config.json" in str(caught.value)


def test_a_sliding_window_counts_only_where_a_layer_uses_it(tmp_path: Path) -> None:
    random_model("qwen2").save_pretrained(tmp_path)
    edit_config(tmp_path, use_sliding_window=False, sliding_window=64)
    HFFolder(tmp_path)
    edit_config(tmp_path, use_sliding_window=True, sliding_window=64, max_window_layers=1, layer_types=...)
    with pytest.raises(UnsupportedModelError, match="sliding window of 64 tokens"):
        HFFolder(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": ...}, "hidden_size"),
        ({"hidden_size": "96"}, "hidden_size"),
        ({"num_attention_heads": 0}, "num_attention_heads|num_heads"),
        ({"num_key_value_heads": 4}, "num_kv_heads|num_key_value_heads|divi"),
        ({"intermediate_size": 128}, r"mlp\.(gate|up|down)_proj\.weight"),
        ({"num_hidden_layers": 4}, r"model\.layers\.3\..* missing"),
        ({"num_hidden_layers": 2}, r"model\.layers\.2\."),
    ],
    ids=str,
)
def test_a_config_that_does_not_fit_its_weights(folder: Path, changes: dict[str, Any], message: str) -> None:
    edit_config(folder, **changes)
    with pytest.raises(CorruptModelError, match=message):
        HFFolder(folder)


class TestDamage:
    def test_a_file_cut_at_any_length(self, folder: Path) -> None:
        whole = (folder / "model.safetensors").read_bytes()
        for length in [0, 1, 7, 8, 9, 500, len(whole) // 2, len(whole) - 1]:
            (folder / "model.safetensors").write_bytes(whole[:length])
            with pytest.raises(CorruptModelError, match=r"model\.safetensors is not a whole safetensors file .* fetch"):
                HFFolder(folder)

    def test_a_missing_and_an_unknown_tensor(self, folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        kept = {name: tensor for name, tensor in tensors.items() if "layers.1.mlp.up_proj" not in name}
        save_file(kept, folder / "model.safetensors")
        with pytest.raises(CorruptModelError, match=r"model\.layers\.1\.mlp\.up_proj\.weight.* missing"):
            HFFolder(folder)
        save_file({**tensors, "model.extra.weight": torch.zeros(2)}, folder / "model.safetensors")
        with pytest.raises(CorruptModelError, match=r"model\.extra\.weight"):
            HFFolder(folder)

    def test_whole_numbers_are_no_weights(self, folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.int8)
        save_file(tensors, folder / "model.safetensors")
        with pytest.raises(UnsupportedModelError, match=r"model\.norm\.weight' has dtype I8"):
            HFFolder(folder)

    def test_a_missing_shard_and_a_lying_index(self, tmp_path: Path) -> None:
        random_model("llama").save_pretrained(tmp_path, max_shard_size="60KB")
        index_path = tmp_path / "model.safetensors.index.json"
        index = json.loads(index_path.read_text())
        shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
        shard.rename(tmp_path / "away")
        with pytest.raises(CorruptModelError, match=f"{shard.name} is missing"):
            HFFolder(tmp_path)
        (tmp_path / "away").rename(shard)
        for value in ("../outside.safetensors", "/etc/passwd", 5):
            name = next(iter(index["weight_map"]))
            index_path.write_text(json.dumps({"weight_map": {**index["weight_map"], name: value}}))
            with pytest.raises(CorruptModelError, match="expected a file in the folder"):
                HFFolder(tmp_path)
        index_path.write_text("{")
        with pytest.raises(CorruptModelError, match=r"index.json"):
            HFFolder(tmp_path)

    def test_no_weights_or_pickled_ones(self, folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        with pytest.raises(ModelNotFoundError, match="no weights"):
            HFFolder(folder)
        (folder / "pytorch_model.bin").write_bytes(b"")
        with pytest.raises(UnsupportedModelError, match="pickled"):
            HFFolder(folder)

    def test_config_that_is_not_json(self, folder: Path) -> None:
        for content in ("", "{", "[]", '{"a": NaN'):
            (folder / "config.json").write_text(content)
            with pytest.raises(CorruptModelError, match=r"config\.json"):
                HFFolder(folder)


def test_dummy_weights_depend_on_seed_and_name_only(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    first, again = (open_checkpoint(folder, load_format="dummy", seed=3) for _ in range(2))
    assert isinstance(first, DummyCheckpoint)
    tensors = dict(first.tensors(torch.float32))
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == expected_shapes(first.config)
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in again.tensors(torch.float32))
    other = dict(open_checkpoint(folder, load_format="dummy", seed=4).tensors(torch.float32))
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(other[name], tensors[name])
    assert not torch.equal(tensors[name], tensors["model.layers.1.mlp.up_proj.weight"])
    assert tensors[name].std().item() == pytest.approx(96**-0.5, rel=0.05)
