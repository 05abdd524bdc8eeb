"""GGUF checkpoints give back the Hugging Face model that they were made from."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infra_lab.errors import CorruptModelError, UnsupportedModelError
from infra_lab.models.gguf_checkpoint import GGUFCheckpoint
from tests.models.gguf_samples import quantized, write_gguf
from tests.models.hf_models import random_model

MODELS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("llama", {"head_dim": 32}),
    ("qwen2", {"tie_word_embeddings": True}),
    ("qwen3", {"head_dim": 24}),
]
WRITABLE = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"]


def expected_tensors(model: Any, kind: GGMLQuantizationType) -> dict[str, torch.Tensor]:
    """Each row is quantized by itself, so the row order of the file must not show: quantize Hugging Face's own rows."""
    expected = {}
    for name, tensor in model.state_dict().items():
        if not (name == "lm_head.weight" and model.config.tie_word_embeddings):
            packed = quantized(tensor.numpy(), kind)
            values = gguf.quants.dequantize(packed, kind if tensor.dim() > 1 else GGMLQuantizationType.F32)
            expected[name] = torch.from_numpy(values.copy())
    return expected


def assert_same_tensors(checkpoint: GGUFCheckpoint, expected: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
    found = dict(checkpoint.tensors(dtype))
    assert list(found) == checkpoint.tensor_names()
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == dtype
        assert tensor.equal(expected[name].to(dtype)), name


@pytest.mark.parametrize(("architecture", "options"), MODELS)
def test_every_architecture_comes_back(tmp_path: Path, architecture: str, options: dict[str, Any]) -> None:
    model = random_model(architecture, **options)
    checkpoint = GGUFCheckpoint(write_gguf(tmp_path / "model.gguf", model))
    assert_same_tensors(checkpoint, expected_tensors(model, GGMLQuantizationType.F32), torch.float32)


@pytest.mark.parametrize("type_name", WRITABLE)
def test_every_type_comes_back(tmp_path: Path, type_name: str) -> None:
    model, kind = random_model("llama"), GGMLQuantizationType[type_name]
    checkpoint = GGUFCheckpoint(write_gguf(tmp_path / "model.gguf", model, kind))
    for dtype in (torch.float32, torch.bfloat16):
        assert_same_tensors(checkpoint, expected_tensors(model, kind), dtype)
    assert checkpoint.num_bytes == sum(tensor.n_bytes for tensor in gguf.GGUFReader(checkpoint.path).tensors)


@pytest.mark.parametrize("type_name", ["Q4_K", "Q6_K"])
def test_k_quants_come_back(tmp_path: Path, type_name: str) -> None:
    """The library cannot write these, so one matrix is made of random bytes; o_proj has no row order to undo."""
    model = random_model("llama", hidden_size=256, num_attention_heads=4)
    kind = GGMLQuantizationType[type_name]
    row_bytes = gguf.GGML_QUANT_SIZES[kind][1]
    packed = np.random.default_rng(0).integers(0, 0x70, (256, row_bytes), dtype=np.uint8)  # scales stay finite
    path = write_gguf(tmp_path / "model.gguf", model, leave_out="blk.1.attn_output.weight")
    checkpoint = GGUFCheckpoint(replace_tensor(path, "blk.1.attn_output.weight", packed, kind))
    tensor = dict(checkpoint.tensors(torch.float32))["model.layers.1.self_attn.o_proj.weight"]
    assert tensor.equal(torch.from_numpy(gguf.quants.dequantize(packed, kind).copy()))


def replace_tensor(path: Path, name: str, packed: np.ndarray, kind: GGMLQuantizationType) -> Path:
    """Copy the file with one tensor more."""
    reader, copy = gguf.GGUFReader(path), path.with_name("copy.gguf")
    writer = gguf.GGUFWriter(copy, "llama")
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            sub_type = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(key, field.contents(), field.types[0], sub_type)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.add_tensor(name, packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return copy


def test_another_quantization_type_is_named(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", random_model("llama"), GGMLQuantizationType.Q5_0)
    with pytest.raises(UnsupportedModelError, match=r"model\.gguf: tensor .*embd.* type Q5_0; .*Q4_1, Q4_K, Q6_K"):
        GGUFCheckpoint(path)


def test_missing_unknown_and_misshapen_tensors_are_named(tmp_path: Path) -> None:
    model = random_model("llama")
    path = write_gguf(tmp_path / "missing.gguf", model, leave_out="blk.1.ffn_up.weight")
    with pytest.raises(CorruptModelError, match=r"missing\.gguf: tensor 'model.layers.1.mlp.up_proj.weight'.* missing"):
        GGUFCheckpoint(path)

    path = write_gguf(tmp_path / "deep.gguf", model, keys={"{arch}.block_count": 2})
    with pytest.raises(CorruptModelError, match=r"deep\.gguf: tensor 'model.layers.2\..* none of a llama .* 2 layers"):
        GGUFCheckpoint(path)

    path = write_gguf(tmp_path / "wide.gguf", model, keys={"{arch}.feed_forward_length": 161})
    with pytest.raises(CorruptModelError, match=r"wide\.gguf: tensor .*gate_proj.* shape \[160, 96\].* \[161, 96\]"):
        GGUFCheckpoint(path)

    extra = {"blk.0.ffn_gate_exps.weight": np.zeros((4, 4), dtype=np.float32)}
    path = write_gguf(tmp_path / "extra.gguf", model, extra_tensors=extra)
    with pytest.raises(UnsupportedModelError, match=r"extra\.gguf: tensor 'blk.0.ffn_gate_exps.weight' is none"):
        GGUFCheckpoint(path)


def test_absurd_layer_count_ends_at_once(tmp_path: Path) -> None:
    """Building the list of what four billion layers should hold would take all memory."""
    path = write_gguf(tmp_path / "model.gguf", random_model("llama"), keys={"{arch}.block_count": 2**32 - 1})
    with pytest.raises(CorruptModelError, match=r"model.layers.3.self_attn.q_proj.weight.* missing"):
        GGUFCheckpoint(path)


@pytest.fixture(scope="module")
def whole_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small file with every kind of part in its header, and Llama 3's divisors."""
    model = random_model(
        "llama", num_hidden_layers=1, vocab_size=12, hidden_size=32, num_attention_heads=4, intermediate_size=32
    )
    path = tmp_path_factory.mktemp("fuzz") / "whole.gguf"
    keys = {"{arch}.rope.scaling.type": "yarn", "{arch}.rope.scaling.factor": 4.0}
    head_dim = model.config.head_dim
    divisors = {"rope_freqs.weight": np.ones(head_dim // 2, dtype=np.float32)}
    return write_gguf(path, model, GGMLQuantizationType.Q8_0, keys=keys, extra_tensors=divisors).read_bytes()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_damage_gets_past_as_another_error(whole_file: bytes, tmp_path: Path, data: st.DataObject) -> None:
    """Flip bytes of the header, cut the file: it is refused with our errors, or it still gives every tensor."""
    header_bytes = whole_file.index(bytes(64)) if bytes(64) in whole_file else len(whole_file)
    flips = data.draw(
        st.lists(st.tuples(st.integers(0, header_bytes - 1), st.sampled_from([0, 1, 7, 0x7F, 0x80, 0xFF])), max_size=3)
    )
    length = data.draw(st.one_of(st.just(len(whole_file)), st.integers(0, len(whole_file))))
    damaged = bytearray(whole_file[:length])
    for position, value in flips:
        if position < length:
            damaged[position] = value
    path = tmp_path / "damaged.gguf"
    path.write_bytes(damaged)
    try:
        checkpoint = GGUFCheckpoint(path)
    except (CorruptModelError, UnsupportedModelError) as error:
        assert str(path) in str(error)  # noqa: PT017  either way is fine
    else:
        assert len(list(checkpoint.tensors(torch.bfloat16))) == len(checkpoint.tensor_names())
