"""From Hugging Face's config.json to a ModelConfig, in the spelling of transformers 4 and 5."""

from pathlib import Path

from infra_lab.errors import ConfigError, CorruptModelError, ModelNotFoundError, UnsupportedModelError
from infra_lab.models.config import Architecture, ModelConfig
from infra_lab.models.hf_json import Fields, read_json_object
from infra_lab.models.hf_rope import rope_from_hf

_ARCHITECTURES: dict[str, Architecture] = {
    "LlamaForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
QUANT_METHOD = "infra-lab"
"""Of a folder whose weights we quantized: see `quantized_folder`."""
_DEFAULT_HEAD_DIM: dict[Architecture, int] = {"qwen3": 128}
"""Where transformers does not derive it from the hidden size."""
_DEFAULT_MAX_POSITION: dict[Architecture, int] = {"llama": 2048, "qwen2": 32768, "qwen3": 32768}


def config_from_folder(folder: Path) -> ModelConfig:
    """Read config.json, and generation_config.json if it is there.

    Raises ModelNotFoundError without a config.json, CorruptModelError for missing or impossible values,
    UnsupportedModelError for an architecture or an option that the engine does not run.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ModelNotFoundError(f"{folder} has no config.json; expected a Hugging Face model folder or a .gguf file")
    fields = Fields(read_json_object(path), path)
    architecture = _architecture(fields)
    _refuse_unsupported_options(fields)
    max_position = fields.integer("max_position_embeddings", _DEFAULT_MAX_POSITION[architecture])
    _refuse_sliding_window(fields, architecture, max_position)
    rope_theta, rope_scaling = rope_from_hf(fields, max_position)

    hidden_size, num_heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    attention_bias = fields.boolean("attention_bias", False) and architecture != "qwen2"
    bos = fields.token_ids("bos_token_id")
    try:
        return ModelConfig(
            architecture=architecture,
            vocab_size=fields.integer("vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=fields.integer("intermediate_size"),
            num_layers=fields.integer("num_hidden_layers"),
            num_heads=num_heads,
            num_kv_heads=fields.integer("num_key_value_heads", num_heads),
            head_dim=fields.integer("head_dim", _DEFAULT_HEAD_DIM.get(architecture, hidden_size // max(1, num_heads))),
            max_position=max_position,
            rope_theta=rope_theta,
            rope_scaling=rope_scaling,
            rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
            qkv_bias=attention_bias or architecture == "qwen2",
            o_bias=attention_bias,
            mlp_bias=fields.boolean("mlp_bias", False) and architecture == "llama",
            qk_norm=architecture == "qwen3",
            tie_word_embeddings=fields.boolean("tie_word_embeddings", False),
            bos_token_id=bos[0] if bos else None,
            eos_token_ids=_end_tokens(fields, folder / "generation_config.json"),
            torch_dtype=fields.text("dtype", fields.text("torch_dtype", "float32")),
        )
    except ConfigError as error:
        raise CorruptModelError(f"{path}: {error}; fetch the model again") from error


def _architecture(fields: Fields) -> Architecture:
    names = fields.values.get("architectures")
    name = names[0] if isinstance(names, list) and len(names) == 1 else names
    if not isinstance(name, str) or name not in _ARCHITECTURES:
        raise UnsupportedModelError(
            f"{fields.path}: architecture {name!r} is not supported; the engine runs {', '.join(_ARCHITECTURES)}"
        )
    return _ARCHITECTURES[name]


def quantization_method(fields: Fields) -> str | None:
    """Return who quantized the weights, None for unquantized ones."""
    if fields.values.get("quantization_config") is None:
        return None
    return str(fields.nested("quantization_config").values.get("quant_method"))


def _refuse_unsupported_options(fields: Fields) -> None:
    method = quantization_method(fields)
    if method not in (None, QUANT_METHOD):
        raise UnsupportedModelError(
            f"{fields.path}: the weights are quantized ({method}); use the unquantized model, or a GGUF file of it"
        )
    activation = fields.text("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise UnsupportedModelError(f"{fields.path}: hidden_act is {activation!r}; the engine runs silu (SwiGLU) only")
    for name in ("num_experts", "num_local_experts", "n_routed_experts"):
        if fields.values.get(name):
            raise UnsupportedModelError(
                f"{fields.path}: {name} is {fields.values[name]!r}; mixture-of-experts models are not supported yet"
            )


def _refuse_sliding_window(fields: Fields, architecture: Architecture, max_position: int) -> None:
    """A window counts only if some layer uses it and it is shorter than the context."""
    if architecture == "llama" or not fields.boolean("use_sliding_window", False):
        return  # Llama has no such layers; Qwen's configurations name a window that is switched off
    if fields.values.get("sliding_window", 4096) is None:
        return
    window = fields.integer("sliding_window", 4096)
    layer_types = fields.values.get("layer_types")
    if isinstance(layer_types, list):
        is_used = "sliding_attention" in layer_types
    else:
        is_used = fields.integer("max_window_layers", 28) < fields.integer("num_hidden_layers")
    if is_used and window < max_position:
        raise UnsupportedModelError(
            f"{fields.path}: layers attend to a sliding window of {window} tokens, which is not supported; "
            "the engine runs full attention"
        )


def _end_tokens(fields: Fields, generation_path: Path) -> tuple[int, ...]:
    """What generation_config.json says goes before what config.json says, as in transformers' `generate`."""
    if generation_path.is_file():
        generation = Fields(read_json_object(generation_path), generation_path)
        if token_ids := generation.token_ids("eos_token_id"):
            return token_ids
    return fields.token_ids("eos_token_id")
