"""A decoder layer as model repositories write it: one tensor operation a line, nothing fused.

    x ─▶ norm ─▶ q, k, v ─▶ RoPE ─▶ append to the cache ─▶ scores ─▶ softmax ─▶ · V ─▶ o ─▶ + x
                                                                                              │
                                       x + down(silu(gate) · up) ◀── gate, up ◀── norm ◀──────┘

It is what a compiler is given. The same layer as the engine runs it is `engine_layer`.
"""

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from infra_lab.errors import UnsupportedModelError
from infra_lab.models.config import ModelConfig
from infra_lab.models.rope import inverse_frequencies
from infra_lab.models.transformer import DecoderLayer
from infra_lab.quantization import DenseLinear

NormSpelling = Literal["rsqrt", "divide"]
"""Two ways to write one formula: x · rsqrt(m), as Hugging Face's Llama has it, or x / sqrt(m). Some compilers know one only."""


class BlockShape(NamedTuple):
    """How much a layer has to do."""

    batch: int
    tokens: int
    """New tokens of each sequence: 1 in a decode, the prompt's in a prefill."""
    past: int = 0
    """Tokens of each sequence that are in the cache already."""


class BlockInputs(NamedTuple):
    """What `DecoderBlock.forward` takes, in its order."""

    x: torch.Tensor
    """[B, T, H]"""
    cos: torch.Tensor
    """[T, D]"""
    sin: torch.Tensor
    """[T, D]"""
    mask: torch.Tensor
    """[T, P + T]: 0 where a query may look, -inf where not."""
    past_key: torch.Tensor
    """[B, Hkv, P, D]"""
    past_value: torch.Tensor
    """[B, Hkv, P, D]"""


class DecoderBlock(nn.Module):
    """One Llama layer of dense causal attention and SwiGLU, on the meta device unless another is given: sizes, no data.

    Raises UnsupportedModelError for a model whose layer has more than that (biases, normalised heads).
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        norm: NormSpelling = "rsqrt",
        dtype: torch.dtype = torch.bfloat16,
        device: str | torch.device = "meta",
    ) -> None:
        if config.qkv_bias or config.o_bias or config.mlp_bias or config.qk_norm:
            raise UnsupportedModelError(
                f"the block has neither biases nor normalised heads, as this {config.architecture} has; "
                "give it a Llama without biases"
            )
        super().__init__()
        self.config, self.norm = config, norm

        def weight(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(*shape, dtype=dtype, device=device), requires_grad=False)

        hidden, inner = config.hidden_size, config.intermediate_size
        self.input_norm, self.post_attention_norm = weight(hidden), weight(hidden)
        self.q, self.o = weight(config.q_size, hidden), weight(hidden, config.q_size)
        self.k, self.v = weight(config.kv_size, hidden), weight(config.kv_size, hidden)
        self.gate, self.up, self.down = weight(inner, hidden), weight(inner, hidden), weight(hidden, inner)

    def forward(
        self,
        x: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        mask: torch.Tensor,
        past_key: torch.Tensor,
        past_value: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the layer's output [B, T, H] and the grown cache, keys and values, each [B, Hkv, P + T, D]."""
        batch, tokens, _ = x.shape
        heads, head_dim = self.config.num_heads, self.config.head_dim
        y = self._rms_norm(x, self.input_norm)
        query = F.linear(y, self.q).view(batch, tokens, -1, head_dim).transpose(1, 2)  # [B, Hq, T, D]
        key = F.linear(y, self.k).view(batch, tokens, -1, head_dim).transpose(1, 2)  # [B, Hkv, T, D]
        value = F.linear(y, self.v).view(batch, tokens, -1, head_dim).transpose(1, 2)
        query = query * cos + rotate_half(query) * sin
        key = key * cos + rotate_half(key) * sin
        key, value = torch.cat([past_key, key], dim=2), torch.cat([past_value, value], dim=2)
        scores = torch.matmul(query, repeat_heads(key, heads).transpose(2, 3)) / math.sqrt(head_dim)
        weights = F.softmax((scores + mask).float(), dim=-1).to(x.dtype)  # [B, Hq, T, P + T]
        attended = torch.matmul(weights, repeat_heads(value, heads)).transpose(1, 2).reshape(batch, tokens, -1)
        x = x + F.linear(attended, self.o)
        y = self._rms_norm(x, self.post_attention_norm)
        x = x + F.linear(F.silu(F.linear(y, self.gate)) * F.linear(y, self.up), self.down)
        return x, key, value

    def _rms_norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        mean = wide.pow(2).mean(-1, keepdim=True) + self.config.rms_norm_eps
        scaled = wide * torch.rsqrt(mean) if self.norm == "rsqrt" else wide / torch.sqrt(mean)
        return weight * scaled.to(x.dtype)


def rotate_half(x: torch.Tensor) -> torch.Tensor:
    """Swap the halves of the last dimension and negate what comes first: (a, b) becomes (-b, a)."""
    half = x.shape[-1] // 2
    return torch.cat([-x[..., half:], x[..., :half]], dim=-1)


def repeat_heads(x: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Copy each KV head of x [B, Hkv, S, D] for all query heads that share it: [B, Hq, S, D]."""
    batch, kv_heads, length, head_dim = x.shape
    wide = x[:, :, None].expand(batch, kv_heads, num_heads // kv_heads, length, head_dim)
    return wide.reshape(batch, num_heads, length, head_dim)


def block_of(layer: DecoderLayer, config: ModelConfig, *, norm: NormSpelling = "rsqrt") -> DecoderBlock:
    """Return the block with the weights of a loaded layer. Raises UnsupportedModelError unless they are dense."""
    linears = [layer.qkv, layer.o, layer.gate_up, layer.down]
    qkv, o, gate_up, down = (linear.weight for linear in linears if isinstance(linear, DenseLinear))
    block = DecoderBlock(config, norm=norm, dtype=qkv.dtype, device=qkv.device)
    q, k, v = torch.split(qkv, [config.q_size, config.kv_size, config.kv_size])
    gate, up = gate_up.chunk(2)
    parts = {"q": q, "k": k, "v": v, "o": o, "gate": gate, "up": up, "down": down}
    norms = {"input_norm": layer.input_norm, "post_attention_norm": layer.post_attention_norm}
    block.load_state_dict({**parts, **norms})
    return block


def block_inputs(
    config: ModelConfig,
    shape: BlockShape,
    *,
    dtype: torch.dtype = torch.bfloat16,
    device: str | torch.device = "meta",
    seed: int = 0,
) -> BlockInputs:
    """Return random inputs of a shape, or none but their sizes on the meta device."""
    batch, tokens, past = shape
    generator = None if str(device) == "meta" else torch.Generator(device).manual_seed(seed)

    def random(*size: int) -> torch.Tensor:
        return torch.randn(*size, dtype=torch.float32, device=device, generator=generator).to(dtype)

    frequencies, factor = inverse_frequencies(config)
    positions = torch.arange(past, past + tokens, device=device)
    angles = torch.outer(positions.float(), frequencies.to(device)).repeat(1, 2)  # [T, D]
    visible = torch.arange(past + tokens, device=device) <= positions.unsqueeze(1)  # [T, P + T]
    mask = torch.zeros(visible.shape, dtype=dtype, device=device)
    cache = (batch, config.num_kv_heads, past, config.head_dim)
    return BlockInputs(
        x=random(batch, tokens, config.hidden_size),
        cos=(angles.cos() * factor).to(dtype),
        sin=(angles.sin() * factor).to(dtype),
        mask=mask.masked_fill_(~visible, float("-inf")),
        past_key=random(*cache),
        past_value=random(*cache),
    )
