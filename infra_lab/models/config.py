"""What a decoder-only transformer is, as numbers: the one configuration every loader produces."""

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from infra_lab.errors import ConfigError

Architecture = Literal["llama", "qwen2", "qwen3"]
SUPPORTED_ARCHITECTURES: tuple[str, ...] = get_args(Architecture)


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """How rotary frequencies are stretched for long contexts, with the field names of Hugging Face's `rope_scaling`."""

    kind: Literal["linear", "dynamic", "llama3", "yarn"]
    factor: float
    original_max_position: int
    low_freq_factor: float = 1.0
    """llama3: wavelengths longer than original/low are divided by `factor`."""
    high_freq_factor: float = 4.0
    """llama3: wavelengths shorter than original/high stay as they are."""
    beta_fast: float = 32.0
    """yarn: frequencies that turn more often than this within the original context are kept."""
    beta_slow: float = 1.0
    """yarn: frequencies that turn less often than this are interpolated."""
    attention_factor: float | None = None
    """yarn: scale of cos and sin; None: 0.1·ln(factor) + 1."""
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Sizes and options of a Llama-like model (Llama, Qwen2, Qwen3 dense).

    Raises ConfigError for sizes that no model can have, naming the field and the value.
    """

    architecture: Architecture
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position: int
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    rms_norm_eps: float = 1e-6
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    """RMSNorm over each head of q and k before RoPE (Qwen3)."""
    tie_word_embeddings: bool = False
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    torch_dtype: str = "bfloat16"
    """The dtype that the weights were published in."""
    extra: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        sizes = (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "max_position",
        )
        for name in sizes:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"num_heads is {self.num_heads}; it must be a multiple of num_kv_heads, {self.num_kv_heads}"
            )
        if self.head_dim < 2 or self.head_dim % 2:
            raise ConfigError(f"head_dim is {self.head_dim}; rotary embedding needs an even number of dimensions")
        for name in ("rope_theta", "rms_norm_eps"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0.0):
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be a positive number")

    @property
    def q_size(self) -> int:
        """Width of all query heads together."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of all key (or value) heads together."""
        return self.num_kv_heads * self.head_dim

    @property
    def num_parameters(self) -> int:
        """How many weights the model has, tied embeddings counted once."""
        attention = self.hidden_size * (self.q_size + 2 * self.kv_size) + self.q_size * self.hidden_size
        attention += (self.q_size + 2 * self.kv_size) * self.qkv_bias + self.hidden_size * self.o_bias
        attention += 2 * self.head_dim * self.qk_norm
        mlp = 3 * self.hidden_size * self.intermediate_size
        mlp += (2 * self.intermediate_size + self.hidden_size) * self.mlp_bias
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)
        return self.num_layers * (attention + mlp + 2 * self.hidden_size) + embeddings + self.hidden_size

    def kv_bytes_per_token(self, dtype_bytes: int) -> int:
        """Bytes of KV cache that one token takes over all layers: 2 (K and V) · layers · KV heads · head size."""
        return 2 * self.num_layers * self.kv_size * dtype_bytes
