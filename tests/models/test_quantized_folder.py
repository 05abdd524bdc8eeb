"""Quantized folders: identical logits in a fresh process, all or nothing when written, refused when damaged."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from tokenizers.pre_tokenizers import ByteLevel

from infra_lab.data import data_path
from infra_lab.errors import ConfigError, CorruptModelError
from infra_lab.models import quantized_folder
from infra_lab.models.hf_config import config_from_folder
from infra_lab.models.hf_write import config_to_hf
from infra_lab.models.loading import load_model
from infra_lab.models.quantize_folder import quantize_to_folder
from infra_lab.models.quantized_folder import save_quantized
from infra_lab.models.tokenizer import load_tokenizer
from infra_lab.models.transformer import CausalLM
from infra_lab.models.weights import open_checkpoint
from infra_lab.quantization import LinearScheme
from infra_lab.quantization.linear_int4 import Int4Linear
from infra_lab.quantization.linear_joined import JoinedLinear
from infra_lab.quantization.recipes import RECIPES
from tests.models.gguf_samples import write_gguf
from tests.models.hf_models import SMALL, load_folder, logits_of, random_model

CPU = torch.device("cpu")
NAMES = ["int8", "w8a8", "rtn-int4-g128", "rtn-int3-g64", "nf4", "mxfp4", "nvfp4", "fp8"]
IN_A_FRESH_PROCESS = """
import sys, numpy, torch
from pathlib import Path
from tests.models.hf_models import load_folder, logits_of
model = load_folder(Path(sys.argv[1]), dtype=getattr(torch, sys.argv[3]))
numpy.save(sys.argv[2], logits_of(model, list(range(40, 90)), [40] + [1] * 10).float().numpy())
"""


def quantized_tiny(name: str, dtype: torch.dtype = torch.float32) -> CausalLM:
    return load_folder(data_path("tiny"), LinearScheme(RECIPES[name]), dtype)


@pytest.mark.parametrize(("name", "dtype"), [("rtn-int3-g64", "float32"), ("int8", "bfloat16"), ("nvfp4", "float32")])
def test_identical_logits_in_a_fresh_process(tmp_path: Path, name: str, dtype: str) -> None:
    model = quantized_tiny(name, getattr(torch, dtype))
    expected = logits_of(model, list(range(40, 90)), [40] + [1] * 10).float()
    save_quantized(model, data_path("tiny"), tmp_path / "model", scheme=name)
    command = [sys.executable, "-c", IN_A_FRESH_PROCESS, str(tmp_path / "model"), str(tmp_path / "logits.npy"), dtype]
    subprocess.run(command, check=True, timeout=240)
    assert np.array_equal(np.load(tmp_path / "logits.npy"), expected.numpy())


@pytest.mark.parametrize("name", NAMES)
def test_every_scheme_comes_back_to_the_last_bit(tmp_path: Path, name: str) -> None:
    model = quantized_tiny(name)
    save_quantized(model, data_path("tiny"), tmp_path / "model", scheme=name)
    loaded = load_folder(tmp_path / "model")
    tokens = list(range(60, 100))
    assert torch.equal(logits_of(model, tokens, [30] + [1] * 10), logits_of(loaded, tokens, [30] + [1] * 10))
    assert (loaded.weight_bytes, loaded.resident_bytes) == (model.weight_bytes, model.resident_bytes)
    stored = sum(file.stat().st_size for file in (tmp_path / "model").glob("*.safetensors"))
    assert stored < model.resident_bytes * 1.02 + 60_000  # the norms and the header
    if "int3" in name:
        assert stored < quantized_tiny("rtn-int4-g64").resident_bytes * 0.9  # three bits are three bits on the disk


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_biases_head_norms_and_an_untied_head(tmp_path: Path, architecture: str) -> None:
    options = {"attention_bias": True, "mlp_bias": True} if architecture == "llama" else {}
    source = tmp_path / "source"
    random_model(architecture, tie_word_embeddings=False, **options).save_pretrained(source)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(data_path("tiny") / name, source / name)
    model = load_folder(source, LinearScheme(RECIPES["rtn-int4-g32"]))
    save_quantized(model, source, tmp_path / "model", scheme="rtn-int4-g32")
    loaded, tokens = load_folder(tmp_path / "model"), list(range(SMALL["vocab_size"] - 30, SMALL["vocab_size"]))
    assert torch.equal(logits_of(model, tokens), logits_of(loaded, tokens))
    assert config_from_folder(tmp_path / "model") == config_from_folder(source)


def bytes_and_a_merge(size: int) -> dict[str, object]:
    """The key-values of a byte-level vocabulary of `size` tokens, one of them merged and one special."""
    tokens = [*sorted(ByteLevel.alphabet()), "ab", "<|im_end|>"]
    tokens += [f"<unused{i}>" for i in range(size - len(tokens))]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.token_type": [3 if token == "<|im_end|>" else 1 for token in tokens],
        "tokenizer.ggml.eos_token_id": tokens.index("<|im_end|>"),
        "tokenizer.chat_template": "{% for message in messages %}{{ message.content }}<|im_end|>{% endfor %}",
    }


@pytest.mark.parametrize("mixed", [False, True])
def test_a_gguf_file_runs_packed_and_is_saved_with_its_tokenizer(tmp_path: Path, mixed: bool) -> None:
    def kind(name: str) -> GGMLQuantizationType:
        if "embed" in name or (mixed and ("v_proj" in name or "up_proj" in name)):
            return GGMLQuantizationType.Q8_0
        return GGMLQuantizationType.F16 if mixed and "k_proj" in name else GGMLQuantizationType.Q4_1

    original = random_model("llama", vocab_size=320, tie_word_embeddings=True)
    source = write_gguf(tmp_path / "tiny.gguf", original, kind, keys=bytes_and_a_merge(320))
    checkpoint = open_checkpoint(source)
    arguments = {"dtype": torch.float32, "device": CPU, "max_model_len": 128}
    packed = load_model(checkpoint, scheme=LinearScheme(RECIPES["gguf"]), **arguments)
    plain = load_model(checkpoint, scheme=LinearScheme(), **arguments)
    assert isinstance(packed.layers[0].qkv, JoinedLinear if mixed else Int4Linear)
    tokens = list(range(20, 60))
    exact, rough = logits_of(plain, tokens), logits_of(packed, tokens)
    assert (rough - exact).abs().mean() < 0.02 * exact.std()  # activations and scales in bfloat16
    assert packed.weight_bytes < plain.weight_bytes / 2.5
    save_quantized(packed, source, tmp_path / "model", scheme="gguf")
    assert torch.equal(logits_of(load_folder(tmp_path / "model"), tokens), rough)
    ours, theirs = load_tokenizer(tmp_path / "model"), load_tokenizer(source)
    text = "Grüße, 世界! abab\n\tdef f(x): return x ** 2  <|im_end|>"
    assert ours.encode(text) == theirs.encode(text)
    assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text))
    assert (ours.eos_token_ids, ours.named_tokens) == (theirs.eos_token_ids, theirs.named_tokens)
    assert ours.chat_templates == theirs.chat_templates


def test_the_command(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    quantize_to_folder("tiny", "int8", tmp_path / "model", progress=lambda *step: seen.append(step))
    assert {what for what, *_ in seen} == {"quantizing", "writing"}
    assert seen[-1][1] == seen[-1][2]
    with pytest.raises(ConfigError, match="exists and is not empty"):
        quantize_to_folder("tiny", "int8", tmp_path / "model")
    with pytest.raises(ConfigError, match=r"is quantized already \(int8\); give the unquantized model"):
        quantize_to_folder(str(tmp_path / "model"), "int8", tmp_path / "other")
    with pytest.raises(ConfigError, match=r"is quantized already \(int8\), not w8a8; leave quantization out"):
        load_folder(tmp_path / "model", LinearScheme(RECIPES["w8a8"]))
    with pytest.raises(ConfigError, match="unknown quantization 'int7'"):
        quantize_to_folder("tiny", "int7", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(quantized_folder, "write_tokenizer", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_quantized(quantized_tiny("int8"), data_path("tiny"), tmp_path / "model", scheme="int8")
    assert not list(tmp_path.iterdir())


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-5000] ^= 4
    path.write_bytes(data)


def edit(folder: Path, **changes: object) -> None:
    values = json.loads((folder / "config.json").read_text())
    values["quantization_config"] |= changes
    (folder / "config.json").write_text(json.dumps(values))


def forget_a_layer(folder: Path) -> None:
    layers = json.loads((folder / "config.json").read_text())["quantization_config"]["layers"]
    del layers["model.layers.2.o"]
    edit(folder, layers=layers)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "is not a whole safetensors file"),
        (flip_a_bit, "is not the file that was saved.*copy the folder again, or quantize the model again"),
        (lambda folder: (folder / "model.safetensors").unlink(), "is not a whole safetensors file"),
        (lambda folder: edit(folder, version=2), "quantized in format 2, and this version reads 1"),
        (forget_a_layer, "its tensors do not fit config.json"),
        (lambda folder: edit(folder, layers=None), "quantized in format"),
        (lambda folder: edit(folder, sha256=None), "is not the file that was saved"),
    ],
    ids=["truncated", "bit", "missing", "version", "layer", "layers", "checksum"],
)
def test_damage_is_refused(tmp_path: Path, damage: object, message: str) -> None:
    save_quantized(quantized_tiny("int8"), data_path("tiny"), tmp_path / "model", scheme="int8")
    damage(tmp_path / "model")  # type: ignore[operator]
    with pytest.raises(CorruptModelError, match=message):
        load_folder(tmp_path / "model")


def test_config_round_trip(tmp_path: Path) -> None:
    scalings = [
        {"rope_type": "linear", "factor": 2.0},
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 64},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "attention_factor": 1.1},
    ]  # fmt: skip
    base = json.loads((data_path("tiny") / "config.json").read_text())
    for scaling in scalings:
        base["rope_parameters"] = {"rope_theta": 5000.0, **scaling}
        (tmp_path / "config.json").write_text(json.dumps(base))
        config = config_from_folder(tmp_path)
        (tmp_path / "config.json").write_text(json.dumps(config_to_hf(config)))
        assert config_from_folder(tmp_path) == config
