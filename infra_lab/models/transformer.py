"""A Llama-like decoder (Llama, Qwen2, Qwen3) over a paged KV cache, one flat batch of tokens at a time.

There is no batch dimension: the tokens of all sequences of a step lie behind each other, [T, ...], whether they are
decodes or prefill chunks. Only attention needs to know which token belongs to whom; it is told by `StepInput`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

import kernels
from infra_lab.models.config import ModelConfig
from infra_lab.models.rope import RotaryTable
from infra_lab.quantization import DenseLinear, Linear, RowLinear

FUSED_ROWS = 64
"""Up to so many rows a layer begins with `kernels.fused_qkv`; beyond, a product with large tiles is faster."""


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

    def turn(
        self,
        x: torch.Tensor | None,
        residual: torch.Tensor,
        config: ModelConfig,
        rotary: tuple[torch.Tensor, torch.Tensor],
        kv_cache: kernels.KVCache,
        step: StepInput,
        *,
        fuses: bool,
    ) -> torch.Tensor:
        """Add to residual [T, H], in place, x [T, H] and attention; return what the next layer is to add, [T, H].

        The add that closes a layer is the first half of the norm that opens the next one. fuses: by `fused_attend`.
        """
        eps = config.rms_norm_eps
        if fuses:
            residual = residual if x is None else residual.add_(x)
            attended = self.fused_attend(residual, config, rotary, kv_cache, step)
        else:
            norm = self.input_norm
            x = kernels.rms_norm(residual, norm, eps) if x is None else kernels.add_rms_norm(x, residual, norm, eps)
            attended = self.attend(x, config, rotary, kv_cache, step)
        x = kernels.add_rms_norm(attended, residual, self.post_attention_norm, eps)
        return self.down(kernels.silu_mul(self.gate_up(x)))

    def attend(
        self,
        x: torch.Tensor,
        config: ModelConfig,
        rotary: tuple[torch.Tensor, torch.Tensor],
        kv_cache: kernels.KVCache,
        step: StepInput,
    ) -> torch.Tensor:
        """Self-attention of x [T, H]: stores the new keys and values, then reads all of each sequence's."""
        num_heads, num_kv_heads = config.num_heads, config.num_kv_heads
        heads = self.qkv(x).view(len(x), -1, config.head_dim)  # [T, Hq + 2·Hkv, D]
        query_key, value = heads[:, : num_heads + num_kv_heads], heads[:, num_heads + num_kv_heads :]
        if self.q_norm is not None and self.k_norm is not None:
            query = kernels.rms_norm(query_key[:, :num_heads], self.q_norm, config.rms_norm_eps)
            key = kernels.rms_norm(query_key[:, num_heads:], self.k_norm, config.rms_norm_eps)
            query_key = torch.cat([query, key], dim=1)
        query_key = kernels.apply_rotary(query_key, *rotary)
        cache, scales = kernels.cache_parts(kv_cache)
        kernels.kv_store(cache, query_key[:, num_heads:], value, step.slots, scales)
        return self._read(query_key[:, :num_heads], kv_cache, step)

    def can_fuse(self, step: StepInput, kv_cache: kernels.KVCache | None = None) -> bool:
        """Whether `fused_attend` is for this layer and step: kernels run, few rows, plain weights, no norm of single heads.

        It rounds nothing to 8 bits: kv_cache, if it is given, must be a plain one.
        """
        return (
            step.batch is not None
            and not isinstance(kv_cache, kernels.QuantizedKV)
            and len(step.token_ids) <= FUSED_ROWS
            and isinstance(self.qkv, DenseLinear)
            and self.qkv.weight.dtype in (torch.bfloat16, torch.float32)
            and self.q_norm is None
        )

    def fused_attend(
        self,
        residual: torch.Tensor,
        config: ModelConfig,
        rotary: tuple[torch.Tensor, torch.Tensor],
        kv_cache: kernels.KVCache,
        step: StepInput,
    ) -> torch.Tensor:
        """Do what `attend` does with the norm of residual [T, H], all up to the attention itself in one launch."""
        assert isinstance(self.qkv, DenseLinear), "can_fuse was asked"
        assert isinstance(kv_cache, torch.Tensor), "can_fuse was asked"
        weight, bias, eps = self.qkv.weight, self.qkv.bias, config.rms_norm_eps
        query = kernels.fused_qkv(residual, self.input_norm, weight, bias, *rotary, kv_cache, step.slots, eps)
        return self._read(query, kv_cache, step)

    def _read(self, query: torch.Tensor, kv_cache: kernels.KVCache, step: StepInput) -> torch.Tensor:
        """Attend queries [T, Hq, D] to the cache and mix the heads."""
        if step.batch is None:
            attended = kernels.paged_attention(query, kv_cache, step.groups)  # [T, Hq, D]
        else:
            attended = kernels.paged_batch_attention(query, kv_cache, step.batch)
        return self.o(attended.view(len(query), -1))


@dataclass(slots=True)
class CausalLM:
    """The whole model: embedding, layers, final norm, output layer (often the embedding again)."""

    config: ModelConfig
    embedding: RowLinear
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

    def forward(self, step: StepInput, kv_caches: Sequence[kernels.KVCache]) -> torch.Tensor:
        """Run the step's tokens through all layers; return the logits of its sample rows, [S, V].

        kv_caches: one [num_blocks, block_size, 2, Hkv, D] a layer, plain or quantized, written in place.
        """
        config = self.config
        rotary = self.rotary.at(step.positions)
        residual = self.embedding.rows(step.token_ids)  # [T, H]
        x = None  # what is still to be added to the residual
        for layer, kv_cache in zip(self.layers, kv_caches, strict=True):
            x = layer.turn(x, residual, config, rotary, kv_cache, step, fuses=layer.can_fuse(step, kv_cache))
        residual = residual if x is None else residual.add_(x)
        sampled = residual.index_select(0, step.sample_rows)  # [S, H]: the last norm is for these only
        return self.lm_head(kernels.rms_norm(sampled, self.norm, config.rms_norm_eps))
