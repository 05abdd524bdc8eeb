"""GGUF files for tests: written by the gguf library, with the names and the row order of llama.cpp's converter."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType

ARCHS = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2, "qwen3": gguf.MODEL_ARCH.QWEN3}


def permute_rows(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """What the converter does to Llama's q and k: from rotating halves to rotating neighbours."""
    halves = weight.reshape(num_heads, 2, weight.shape[0] // num_heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def quantized(weight: np.ndarray, kind: GGMLQuantizationType) -> np.ndarray:
    """The packed rows; norms and biases stay float32, as the converter leaves them."""
    return gguf.quants.quantize(weight, kind if weight.ndim > 1 else GGMLQuantizationType.F32)


def write_gguf(
    path: Path,
    model: Any,
    kind: GGMLQuantizationType | Callable[[str], GGMLQuantizationType] = GGMLQuantizationType.F32,
    *,
    keys: dict[str, Any] | None = None,
    extra_tensors: dict[str, np.ndarray] | None = None,
    leave_out: str = "",
) -> Path:
    """Write a transformers model. `keys` adds or replaces key-values (None drops one); `{arch}` is filled in.

    `kind` is one for all matrices, or a function of their Hugging Face names.
    """
    config = model.config
    arch = config.model_type
    writer = gguf.GGUFWriter(path, arch)
    values: dict[str, Any] = {
        "{arch}.block_count": config.num_hidden_layers,
        "{arch}.context_length": config.max_position_embeddings,
        "{arch}.embedding_length": config.hidden_size,
        "{arch}.feed_forward_length": config.intermediate_size,
        "{arch}.attention.head_count": config.num_attention_heads,
        "{arch}.attention.head_count_kv": config.num_key_value_heads,
        "{arch}.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "{arch}.rope.freq_base": config.rope_parameters["rope_theta"],
        "tokenizer.ggml.tokens": [f"token{i}" for i in range(config.vocab_size)],
        "tokenizer.ggml.eos_token_id": 2,
    }
    if getattr(config, "head_dim", None):
        values["{arch}.attention.key_length"] = values["{arch}.attention.value_length"] = config.head_dim
    for key, value in (values | (keys or {})).items():
        add_key(writer, key.format(arch=arch), value)

    names = gguf.get_tensor_name_map(ARCHS[arch], config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        gguf_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if (name == "lm_head.weight" and config.tie_word_embeddings) or gguf_name == leave_out:
            continue
        weight = tensor.to(torch.float32).numpy()
        if arch == "llama" and ".q_proj." in name:
            weight = permute_rows(weight, config.num_attention_heads)
        if arch == "llama" and ".k_proj." in name:
            weight = permute_rows(weight, config.num_key_value_heads)
        own = kind(name) if callable(kind) else kind
        raw_dtype = own if weight.ndim > 1 else GGMLQuantizationType.F32
        writer.add_tensor(gguf_name, quantized(weight, own), raw_dtype=raw_dtype)
    for name, data in (extra_tensors or {}).items():
        writer.add_tensor(name, data)
    save(writer)
    return path


def add_key(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    """Add a key-value of the type that the converter would choose."""
    if value is None:
        return
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def save(writer: gguf.GGUFWriter) -> None:
    """Write all parts of the file and close it."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
