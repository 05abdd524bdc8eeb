"""The engine's models as torch modules that can be trained: plain torch on [B, T], no cache, every state on show.

Parameters carry their Hugging Face names, so a checkpoint's tensors are this module's `state_dict()` and the other way
round. Serving stays with the engine: train here, write a folder (see `saving`), and give it to `LLM`.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import nn

from infra_lab.errors import ConfigError
from infra_lab.models.config import ModelConfig
from infra_lab.models.dummy import DummyCheckpoint
from infra_lab.models.fetch import resolve_model
from infra_lab.models.rope import RotaryTable
from infra_lab.models.weights import open_checkpoint

Rotary = tuple[torch.Tensor, torch.Tensor]
"""cos and signed sin, each [T, D]."""


class Forward(NamedTuple):
    """What a forward pass gives: the answer, and what it went through."""

    logits: torch.Tensor
    """[B, T, V]."""
    hidden: list[torch.Tensor]
    """L + 1 of [B, T, H]: the embedding, then the residual stream after each layer, before the final norm."""
    attention: list[torch.Tensor]
    """L of [B, Hq, T, T], rows that sum to 1; empty unless asked for."""


class RMSNorm(nn.Module):
    """x / √(mean(x²) + ε) · weight over the last dimension, in the dtype of x."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size, device="meta"))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [..., size] to the same shape."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class Attention(nn.Module):
    """Causal self-attention in which Hq / Hkv query heads share a key and value head."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.q_proj = _linear(config.hidden_size, config.q_size, config.qkv_bias)
        self.k_proj = _linear(config.hidden_size, config.kv_size, config.qkv_bias)
        self.v_proj = _linear(config.hidden_size, config.kv_size, config.qkv_bias)
        self.o_proj = _linear(config.q_size, config.hidden_size, config.o_bias)
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
            self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)

    def forward(self, x: torch.Tensor, rotary: Rotary, want_map: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Map x [B, T, H] to [B, T, H], and return the map [B, Hq, T, T] if it is wanted."""
        query, key, value = (self._heads(project(x)) for project in (self.q_proj, self.k_proj, self.v_proj))
        if self.config.qk_norm:
            query, key = self.q_norm(query), self.k_norm(key)
        query, key = rotate(query, rotary).to(value.dtype), rotate(key, rotary).to(value.dtype)
        group = self.config.num_heads // self.config.num_kv_heads
        key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)  # [B, Hq, T, D]
        if not want_map:
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
            return self.o_proj(mixed.transpose(1, 2).flatten(2)), None
        scores = query @ key.transpose(2, 3) * self.config.head_dim**-0.5
        future = torch.ones(scores.shape[2:], dtype=torch.bool, device=x.device).triu(1)
        probs = scores.masked_fill(future, float("-inf")).softmax(dim=-1)
        mixed = probs.to(value.dtype) @ value
        return self.o_proj(mixed.transpose(1, 2).flatten(2)), probs

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(*x.shape[:2], -1, self.config.head_dim).transpose(1, 2)  # [B, heads, T, D]


class MLP(nn.Module):
    """SwiGLU (Shazeer 2020): down(silu(gate(x)) · up(x))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = _linear(config.hidden_size, config.intermediate_size, config.mlp_bias)
        self.up_proj = _linear(config.hidden_size, config.intermediate_size, config.mlp_bias)
        self.down_proj = _linear(config.intermediate_size, config.hidden_size, config.mlp_bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [B, T, H] to [B, T, H]."""
        y: torch.Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return y


class Layer(nn.Module):
    """Attention and MLP, each behind a norm and beside a residual connection."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: torch.Tensor, rotary: Rotary, want_map: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Map the residual stream [B, T, H] to what the next layer gets, with the attention map if it is wanted."""
        attended, probs = self.self_attn(self.input_layernorm(x), rotary, want_map)
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x)), probs


class TrainableLM(nn.Module):
    """A Llama, Qwen2 or Qwen3 with the weights of `tensors`: (Hugging Face name, tensor), as a checkpoint hands them out.

    The tensors become the parameters, in their dtype and where they lie; they are not copied.
    """

    def __init__(self, config: ModelConfig, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        super().__init__()
        self.config = config
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, device="meta")
        self.model.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        self.model.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        if not config.tie_word_embeddings:
            self.lm_head = _linear(config.hidden_size, config.vocab_size, False)
        self.load_state_dict(dict(tensors), assign=True)

    @property
    def layers(self) -> list[Layer]:
        """The layers, first to last."""
        return cast(list[Layer], list(cast(nn.ModuleList, self.model.layers)))

    @property
    def embedding(self) -> torch.Tensor:
        """[V, H]; where embeddings are tied, the output layer too."""
        return cast(nn.Embedding, self.model.embed_tokens).weight

    @property
    def num_parameters(self) -> int:
        """How many weights it has, tied embeddings counted once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def forward(self, token_ids: torch.Tensor, *, attention: bool = False) -> Forward:
        """Run token_ids [B, T] int64 through all layers; with `attention`, keep the maps, which costs B · Hq · T² a layer.

        Raises ConfigError for a text longer than the model's context.
        """
        length = token_ids.shape[1]
        if length > self.config.max_position:
            raise ConfigError(f"texts of {length} tokens, and the model's context is {self.config.max_position}")
        x = F.embedding(token_ids, self.embedding)  # [B, T, H]
        table = RotaryTable(self.config, length, torch.float32, x.device)
        rotary = (table.cos.to(x.dtype), table.sin.to(x.dtype))
        hidden, maps = [x], []
        for layer in self.layers:
            x, probs = layer(x, rotary, attention)
            hidden.append(x)
            maps += [] if probs is None else [probs]
        return Forward(self.logits(x), hidden, maps)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Map the residual stream after the last layer, [B, T, H], to logits [B, T, V]."""
        weight = self.embedding if self.config.tie_word_embeddings else self.lm_head.weight
        return F.linear(cast(RMSNorm, self.model.norm)(hidden), weight)


def rotate(x: torch.Tensor, rotary: Rotary) -> torch.Tensor:
    """Turn x [B, heads, T, D] by its positions: plane i is (x[i], x[i + D/2])."""
    cos, sin = rotary
    return x * cos + x.roll(x.shape[-1] // 2, dims=-1) * sin


def load_trainable(
    model: str | Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> TrainableLM:
    """Load a model ("tiny", "smollm2-135m", a Hugging Face folder, a .gguf file, whose blocks are dequantized) for training.

    Raises what finding and opening a model raises, and ConfigError for a folder that is quantized already.
    """
    checkpoint = open_checkpoint(resolve_model(str(model)))
    return TrainableLM(checkpoint.config, ((name, tensor.to(device)) for name, tensor in checkpoint.tensors(dtype)))


def random_trainable(
    config: ModelConfig, *, seed: int = 0, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> TrainableLM:
    """Return a model that has learnt nothing; the same seed gives the same weights, embeddings of size 1/√H."""
    tensors = DummyCheckpoint(config, seed=seed).tensors(dtype)
    return TrainableLM(config, ((name, tensor.to(device)) for name, tensor in tensors))


def _linear(num_in: int, num_out: int, bias: bool) -> nn.Linear:
    return nn.Linear(num_in, num_out, bias=bias, device="meta")
