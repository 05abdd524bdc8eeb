"""A Llama-like decoder (Llama, Qwen2, Qwen3) over a paged KV cache, one flat batch of tokens at a time.

There is no batch dimension: the tokens of all sequences of a step lie behind each other, [T, ...], whether they are
decodes or prefill chunks. Only attention needs to know which token belongs to whom; it is told by `StepInput`.
"""

from dataclasses import dataclass

import torch

import kernels
from infra_lab.models.config import ModelConfig
from infra_lab.models.rope import RotaryTable
from infra_lab.quantization import DenseLinear, Linear
from infra_lab.quantization.linear import Int8Linear


@dataclass(slots=True)
class StepInput:
    """The tensors of one step. T tokens, S of them sampled after."""

    token_ids: torch.Tensor
    """[T] int64."""
    positions: torch.Tensor
    """[T] int64, each within its own sequence."""
    slots: torch.Tensor
    """[T] int64: where each token's key and value go, block · block_size + offset."""
    groups: list[kernels.QueryGroup]
    """How rows form sequences, for attention."""
    sample_rows: torch.Tensor
    """[S] int64: the rows whose logits are wanted."""
    batch: kernels.PagedBatch | None = None
    """Instead of `groups`, where attention is a Triton kernel."""


@dataclass(slots=True)
class DecoderLayer:
    """The weights of one layer: attention and SwiGLU, each behind an RMSNorm and a residual connection."""

    input_norm: torch.Tensor
    qkv: Linear
    """Query, key and value heads from one product: [H] → [(Hq + 2·Hkv) · D]."""
    o: Linear
    post_attention_norm: torch.Tensor
    gate_up: Linear
    down: Linear
    q_norm: torch.Tensor | None = None
    k_norm: torch.Tensor | None = None

    def attend(
        self,
        x: torch.Tensor,
        config: ModelConfig,
        rotary: tuple[torch.Tensor, torch.Tensor],
        kv_cache: torch.Tensor,
        step: StepInput,
    ) -> torch.Tensor:
        """Self-attention of x [T, H]: stores the new keys and values, then reads all of each sequence's."""
        num_tokens, num_heads, num_kv_heads = x.shape[0], config.num_heads, config.num_kv_heads
        heads = self.qkv(x).view(num_tokens, -1, config.head_dim)  # [T, Hq + 2·Hkv, D]
        query_key, value = heads[:, : num_heads + num_kv_heads], heads[:, num_heads + num_kv_heads :]
        if self.q_norm is not None and self.k_norm is not None:
            query = kernels.rms_norm(query_key[:, :num_heads], self.q_norm, config.rms_norm_eps)
            key = kernels.rms_norm(query_key[:, num_heads:], self.k_norm, config.rms_norm_eps)
            query_key = torch.cat([query, key], dim=1)
        query_key = kernels.apply_rotary(query_key, *rotary)
        kernels.kv_store(kv_cache, query_key[:, num_heads:], value, step.slots)
        query = query_key[:, :num_heads]
        if step.batch is None:
            attended = kernels.paged_attention(query, kv_cache, step.groups)  # [T, Hq, D]
        else:
            attended = kernels.paged_batch_attention(query, kv_cache, step.batch)
        return self.o(attended.view(num_tokens, -1))


@dataclass(slots=True)
class CausalLM:
    """The whole model: embedding, layers, final norm, output layer (often the embedding again)."""

    config: ModelConfig
    embedding: DenseLinear | Int8Linear
    layers: list[DecoderLayer]
    norm: torch.Tensor
    lm_head: Linear
    rotary: RotaryTable

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights that one decode step reads: all but the embedding, of which it reads a row a token."""
        layers = sum(
            layer.qkv.weight_bytes + layer.o.weight_bytes + layer.gate_up.weight_bytes + layer.down.weight_bytes
            for layer in self.layers
        )
        return layers + self.lm_head.weight_bytes

    @property
    def resident_bytes(self) -> int:
        """Bytes of weights held in memory, the embedding counted once where it is also the output layer."""
        return self.weight_bytes + (0 if self.embedding is self.lm_head else self.embedding.weight_bytes)

    def forward(self, step: StepInput, kv_caches: list[torch.Tensor]) -> torch.Tensor:
        """Run the step's tokens through all layers; return the logits of its sample rows, [S, V].

        kv_caches: one [num_blocks, block_size, 2, Hkv, D] a layer, written in place.
        """
        eps = self.config.rms_norm_eps
        rotary = self.rotary.at(step.positions)
        residual = self.embedding.rows(step.token_ids)  # [T, H]
        x = kernels.rms_norm(residual, self.layers[0].input_norm, eps)
        for layer, next_layer, kv_cache in zip(self.layers, [*self.layers[1:], None], kv_caches, strict=True):
            attended = layer.attend(x, self.config, rotary, kv_cache, step)
            x = kernels.add_rms_norm(attended, residual, layer.post_attention_norm, eps)
            x = layer.down(kernels.silu_mul(layer.gate_up(x)))
            if next_layer is not None:
                x = kernels.add_rms_norm(x, residual, next_layer.input_norm, eps)
        sampled = residual.add_(x).index_select(0, step.sample_rows)  # [S, H]: the last norm is for these only
        return self.lm_head(kernels.rms_norm(sampled, self.norm, eps))
