"""From GGUF's key-values to a ModelConfig.

Options that GGUF does not write down are read off the tensors that are there: biases, and an output matrix (without
one, the embedding is used twice).
"""

import math
from collections.abc import Collection
from pathlib import Path
from typing import Any, cast

from infra_lab.errors import ConfigError, CorruptModelError, UnsupportedModelError
from infra_lab.models.config import SUPPORTED_ARCHITECTURES, Architecture, ModelConfig


class Metadata:
    """Typed access to key-values; `{arch}` in a key stands for the file's architecture.

    Raises CorruptModelError, naming file, key and value, for a missing key without default or a value of another type.
    """

    def __init__(self, values: dict[str, Any], path: Path) -> None:
        self.values, self.path = values, path
        self.architecture = self._get("general.architecture", str, "a name", None)

    def integer(self, key: str, default: int | None = None) -> int:
        """Return a whole number; a list of equal ones (one a layer) counts as one."""
        return int(self._get(key, int, "a whole number", default))

    def number(self, key: str, default: float | None = None) -> float:
        """Return a finite number."""
        value = float(self._get(key, (int, float), "a number", default))
        if not math.isfinite(value):
            raise CorruptModelError(f"{self.path}: key {self._full(key)!r} is {value}; fetch the model again")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """Return a string."""
        return str(self._get(key, str, "a string", default))

    def has(self, key: str) -> bool:
        """Whether the file has the key."""
        return self._full(key) in self.values

    def unsupported(self, key: str, reason: str) -> UnsupportedModelError:
        """Return the error for a value that the engine does not run."""
        value = self.values.get(self._full(key))
        return UnsupportedModelError(f"{self.path}: {self._full(key)} is {value!r}: {reason}")

    def _full(self, key: str) -> str:
        return key.replace("{arch}", self.architecture) if "{arch}" in key else key

    def _get(self, key: str, kind: type | tuple[type, ...], expected: str, default: Any) -> Any:
        value = self.values.get(self._full(key), default)
        if isinstance(value, list) and value and isinstance(value[0], kind):
            if any(item != value[0] for item in value):
                raise self.unsupported(key, "layers of different sizes are not supported")
            value = value[0]
        if value is None:
            raise CorruptModelError(f"{self.path} has no key {self._full(key)!r}; expected {expected}; fetch it again")
        if not isinstance(value, kind) or isinstance(value, bool):
            raise CorruptModelError(f"{self.path}: {self._full(key)} is {value!r}, expected {expected}; fetch it again")
        return value


def check_architecture(meta: Metadata) -> None:
    """Raise UnsupportedModelError unless the file's architecture is one that the engine runs."""
    if meta.architecture not in SUPPORTED_ARCHITECTURES:
        raise meta.unsupported("general.architecture", f"the engine runs {', '.join(SUPPORTED_ARCHITECTURES)}")


def config_from_gguf(meta: Metadata, tensor_names: Collection[str], torch_dtype: str) -> ModelConfig:
    """Return the configuration that a GGUF header describes, but for RoPE scaling (see `gguf_rope`).

    `tensor_names` are the Hugging Face names of the file's tensors. Raises CorruptModelError for missing or impossible
    values, UnsupportedModelError for another architecture or an option that the engine does not run.
    """
    check_architecture(meta)
    _refuse_unsupported_options(meta)
    hidden_size, num_heads = meta.integer("{arch}.embedding_length"), meta.integer("{arch}.attention.head_count")
    head_dim = meta.integer("{arch}.attention.key_length", hidden_size // max(1, num_heads))
    for key in ("{arch}.attention.value_length", "{arch}.rope.dimension_count"):
        if meta.integer(key, head_dim) != head_dim:
            raise meta.unsupported(key, f"it must equal the size of a key head, {head_dim}")
    tokens = meta.values.get("tokenizer.ggml.tokens")
    first_layer = "model.layers.0."
    try:
        return ModelConfig(
            architecture=cast(Architecture, meta.architecture),
            vocab_size=len(tokens) if isinstance(tokens, list) else meta.integer("{arch}.vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=meta.integer("{arch}.feed_forward_length"),
            num_layers=meta.integer("{arch}.block_count"),
            num_heads=num_heads,
            num_kv_heads=meta.integer("{arch}.attention.head_count_kv", num_heads),
            head_dim=head_dim,
            max_position=meta.integer("{arch}.context_length"),
            rope_theta=meta.number("{arch}.rope.freq_base", 10_000.0),
            rms_norm_eps=meta.number("{arch}.attention.layer_norm_rms_epsilon"),
            qkv_bias=first_layer + "self_attn.q_proj.bias" in tensor_names,
            o_bias=first_layer + "self_attn.o_proj.bias" in tensor_names,
            mlp_bias=first_layer + "mlp.gate_proj.bias" in tensor_names,
            qk_norm=meta.architecture == "qwen3",
            tie_word_embeddings="lm_head.weight" not in tensor_names,
            bos_token_id=meta.integer("tokenizer.ggml.bos_token_id")
            if meta.has("tokenizer.ggml.bos_token_id")
            else None,
            eos_token_ids=_end_tokens(meta),
            torch_dtype=torch_dtype,
        )
    except ConfigError as error:
        raise CorruptModelError(f"{meta.path}: {error}; fetch the model again") from error


def _refuse_unsupported_options(meta: Metadata) -> None:
    if meta.integer("{arch}.expert_count", 0):
        raise meta.unsupported("{arch}.expert_count", "mixture-of-experts models are not supported yet")
    if meta.values.get(f"{meta.architecture}.attention.causal") is False:
        raise meta.unsupported("{arch}.attention.causal", "only causal (generating) models are supported")
    window = meta.integer("{arch}.attention.sliding_window", 0)
    if 0 < window < meta.integer("{arch}.context_length"):
        raise meta.unsupported("{arch}.attention.sliding_window", "sliding-window attention is not supported")


def _end_tokens(meta: Metadata) -> tuple[int, ...]:
    """Tokens that end an answer: end of sequence, of turn, and of a message that calls a tool."""
    keys = [f"tokenizer.ggml.{kind}_token_id" for kind in ("eos", "eot", "eom")]
    return tuple(dict.fromkeys(meta.integer(key) for key in keys if meta.has(key)))
