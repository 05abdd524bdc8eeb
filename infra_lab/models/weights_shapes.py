"""Which tensors a model of a given configuration has, and the check that a checkpoint has exactly these."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from infra_lab.errors import CorruptModelError
from infra_lab.models.config import ModelConfig

Shape = tuple[int, ...]

NORM_FIELDS = {
    "input_layernorm": "input_norm",
    "post_attention_layernorm": "post_attention_norm",
    "self_attn.q_norm": "q_norm",
    "self_attn.k_norm": "k_norm",
}
"""Of a layer: by the Hugging Face name of a norm, the field of `DecoderLayer`."""


def expected_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Return the shape of every tensor by its Hugging Face name; matrices are [out, in], a tied lm_head is absent."""
    return dict(_iterate_shapes(config))


def is_redundant(name: str, config: ModelConfig) -> bool:
    """Whether checkpoints may carry the tensor though the model does not need it.

    Old ones store the rotary frequencies, which follow from the configuration; some store a tied lm_head a second time.
    """
    return name.endswith(".rotary_emb.inv_freq") or (name == "lm_head.weight" and config.tie_word_embeddings)


def check_shapes(
    config: ModelConfig, found: Mapping[str, Shape], path: Path, files: Mapping[str, Path] | None = None
) -> None:
    """Check that `found` has every expected tensor with its shape, and none that is unknown.

    `files` names the file of each tensor, where there are several; otherwise errors name `path`.
    Raises CorruptModelError, naming file and tensor.
    """
    # Step by step rather than from a complete dict: a damaged header may announce 2**31 layers.
    expected_names = set()
    for name, shape in _iterate_shapes(config):
        if name not in found:
            raise CorruptModelError(f"{path}: tensor {name!r} {list(shape)} is missing; fetch the model again")
        if found[name] != shape:
            file = files[name] if files else path
            raise CorruptModelError(
                f"{file}: tensor {name!r} has shape {list(found[name])}, but the configuration asks for {list(shape)}; "
                "fetch the model again, configuration and weights together"
            )
        expected_names.add(name)
    for name in found:
        if name not in expected_names and not is_redundant(name, config):
            file = files[name] if files else path
            raise CorruptModelError(
                f"{file}: tensor {name!r} {list(found[name])} is none of a {config.architecture} model with "
                f"{config.num_layers} layers; fetch the model again, configuration and weights together"
            )


def _iterate_shapes(config: ModelConfig) -> Iterator[tuple[str, Shape]]:
    hidden, intermediate = config.hidden_size, config.intermediate_size
    linears = {
        "self_attn.q_proj": (config.q_size, hidden, config.qkv_bias),
        "self_attn.k_proj": (config.kv_size, hidden, config.qkv_bias),
        "self_attn.v_proj": (config.kv_size, hidden, config.qkv_bias),
        "self_attn.o_proj": (hidden, config.q_size, config.o_bias),
        "mlp.gate_proj": (intermediate, hidden, config.mlp_bias),
        "mlp.up_proj": (intermediate, hidden, config.mlp_bias),
        "mlp.down_proj": (hidden, intermediate, config.mlp_bias),
    }
    norms = {"input_layernorm": hidden, "post_attention_layernorm": hidden}
    if config.qk_norm:
        norms |= {"self_attn.q_norm": config.head_dim, "self_attn.k_norm": config.head_dim}

    yield "model.embed_tokens.weight", (config.vocab_size, hidden)
    for index in range(config.num_layers):
        prefix = f"model.layers.{index}."
        for module, (rows, columns, has_bias) in linears.items():
            yield f"{prefix}{module}.weight", (rows, columns)
            if has_bias:
                yield f"{prefix}{module}.bias", (rows,)
        for module, size in norms.items():
            yield f"{prefix}{module}.weight", (size,)
    yield "model.norm.weight", (hidden,)
    if not config.tie_word_embeddings:
        yield "lm_head.weight", (config.vocab_size, hidden)
