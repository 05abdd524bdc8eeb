"""The trainable model against transformers and the engine: logits, states, maps, gradients, and back into the engine."""

from pathlib import Path
from typing import Any

import pytest
import torch

from infra_lab import LLM, SamplingParams
from infra_lab.compression import saving
from infra_lab.compression.saving import save_trainable
from infra_lab.compression.trainable import TrainableLM, load_trainable, random_trainable
from infra_lab.data import data_path
from infra_lab.errors import ConfigError
from infra_lab.models.fetch import resolve_model
from infra_lab.models.quantize_folder import quantize_to_folder
from tests.compression.models import ALL_BIASES, TEXT, pair, theirs, tiny
from tests.models.hf_models import load_folder, logits_of


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("llama", ALL_BIASES),
        ("llama", {"tie_word_embeddings": True, "head_dim": 24}),
        (
            "llama",
            {
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 16,
                }
            },
        ),
        ("qwen2", {}),
        ("qwen3", {"head_dim": 16}),
    ],
)
def test_every_state_and_map_is_transformers(tmp_path: Path, architecture: str, options: dict[str, Any]) -> None:
    reference, model = pair(tmp_path, architecture, **options)
    with torch.no_grad():
        expected = reference(TEXT, output_hidden_states=True, output_attentions=True)
        found, plain = model(TEXT, attention=True), model(TEXT)
    assert torch.allclose(found.logits, expected.logits, atol=2e-5, rtol=1e-5)
    assert torch.allclose(plain.logits, found.logits, atol=1e-10)
    assert plain.attention == []
    assert len(found.hidden) == 4
    for ours, their in zip(found.hidden[:-1], expected.hidden_states[:-1], strict=True):
        assert torch.allclose(ours, their, atol=2e-5, rtol=1e-5)
    assert torch.allclose(reference.model.norm(found.hidden[-1]), expected.hidden_states[-1], atol=2e-5)
    for ours, their in zip(found.attention, expected.attentions, strict=True):
        assert torch.allclose(ours, their, atol=1e-6)
    assert model.num_parameters == model.config.num_parameters == sum(p.numel() for p in reference.parameters())


def test_gradients_are_transformers(tmp_path: Path) -> None:
    reference, model = pair(tmp_path, **ALL_BIASES)
    weights = torch.randn(2, TEXT.shape[1], 300, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (reference(TEXT).logits * weights).sum().backward()
    (model(TEXT).logits * weights).sum().backward()
    expected = dict(reference.named_parameters())
    found = dict(model.named_parameters())
    assert found.keys() == expected.keys()
    for name, parameter in found.items():
        assert torch.allclose(
            parameter.grad, expected[name].grad, rtol=1e-4, atol=1e-5 * expected[name].grad.abs().max()
        )


def test_logits_are_the_engines() -> None:
    tokens = list(b"What a function returns, and what it raises.")
    with torch.no_grad():
        found = tiny()(torch.tensor([tokens])).logits[0]
    expected = logits_of(load_folder(data_path("tiny")), tokens)
    assert (found - expected).abs().max() < 1e-4  # of up to 19


@pytest.mark.smollm2
def test_logits_of_smollm2_are_the_engines() -> None:
    path = resolve_model("smollm2-135m")
    model = load_trainable("smollm2-135m")
    tokens = list(range(1000, 1012))
    with torch.no_grad():
        found = model(torch.tensor([tokens])).logits[0]
    expected = logits_of(load_folder(path), tokens)
    assert (found - expected).abs().max() < 1e-3 * float(expected.abs().max())


def changed_tiny() -> TrainableLM:
    model = tiny()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 0.1 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_saved_folder_serves_the_same(tmp_path: Path, dtype: str) -> None:
    model = changed_tiny()
    save_trainable(model, data_path("tiny"), tmp_path / "out" / "model", dtype=dtype)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model"]
    rounded = {name: tensor.to(getattr(torch, dtype)).float() for name, tensor in model.state_dict().items()}
    model = TrainableLM(model.config, rounded.items())
    tokens = list(b"An iterator over ")
    with torch.no_grad():
        expected = model(torch.tensor([tokens])).logits[0]
        greedy = list(tokens)
        for _ in range(12):
            greedy.append(int(model(torch.tensor([greedy])).logits[0, -1].argmax()))
    folder = tmp_path / "out" / "model"
    assert (logits_of(load_folder(folder), tokens) - expected).abs().max() < 1e-4
    with torch.no_grad():
        assert (theirs(folder, torch.float32)(torch.tensor([tokens])).logits[0] - expected).abs().max() < 1e-4
    llm = LLM(str(folder), dtype="float32", device="cpu", num_kv_blocks=8)
    [output] = llm.generate([tokens], SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True))
    assert output.token_ids == greedy[len(tokens) :]


def test_what_cannot_be_saved_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note").write_text("mine")
    with pytest.raises(ConfigError, match="exists and is not empty"):
        save_trainable(model, data_path("tiny"), tmp_path / "full")
    with pytest.raises(ConfigError, match="dtype is 'int8'; expected one of float32"):
        save_trainable(model, data_path("tiny"), tmp_path / "new", dtype="int8")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(saving, "write_tokenizer", fail)
        with pytest.raises(OSError, match="disk full"):
            save_trainable(model, data_path("tiny"), tmp_path / "new")
    with torch.no_grad():
        model.layers[1].mlp.down_proj.weight[0, 0] = 1e5  # more than float16 has
    with pytest.raises(ConfigError, match=r"layers\.1\.mlp\.down_proj\.weight is not finite in float16"):
        save_trainable(model, data_path("tiny"), tmp_path / "new", dtype="float16")
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_what_cannot_be_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="texts of 1025 tokens, and the model's context is 1024"):
        tiny()(torch.zeros(1, 1025, dtype=torch.int64))
    quantize_to_folder("tiny", "int8", tmp_path / "model")
    with pytest.raises(ConfigError, match="is quantized already"):
        load_trainable(tmp_path / "model")


def test_random_weights_follow_the_seed() -> None:
    config = tiny().config
    first, same, other = (random_trainable(config, seed=seed).embedding for seed in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
