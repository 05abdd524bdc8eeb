"""A model's forward pass taken apart: layer by layer over many texts at once, with a stop in front of each matrix.

    hidden ─ norm ─ x ▸ qkv ─ attention ─ x ▸ o ─ + ─ norm ─ x ▸ gate_up ─ silu · ─ x ▸ down ─ + ─ hidden

At each ▸ the caller sees the matrix's input, and may put another matrix in its place before the walk goes on through it. So a
layer is calibrated with what the already quantized part before it really produces, in one pass over the texts.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal, NamedTuple, get_args

import torch

import kernels
from infra_lab.errors import ConfigError
from infra_lab.models.transformer import CausalLM, DecoderLayer, StepInput
from infra_lab.quantization import Linear

Matrix = Literal["qkv", "o", "gate_up", "down"]
MATRICES: tuple[Matrix, ...] = get_args(Matrix)


class Stop(NamedTuple):
    """The walk stands in front of a matrix."""

    matrix: Matrix
    inputs: torch.Tensor
    """[N · L, in], not to be changed."""


class LayerWalk:
    """The hidden states of N texts of L tokens, and the way through one layer after another.

    Only one layer's activations are held, and keys and values of one layer. Raises ConfigError for texts longer than the
    model was loaded for.
    """

    def __init__(self, model: CausalLM, token_ids: torch.Tensor) -> None:
        num_texts, length = token_ids.shape
        config, room = model.config, len(model.rotary.cos)
        if length > room:
            raise ConfigError(f"texts of {length} tokens, and the model was loaded for {room}; take shorter slices")
        device = model.norm.device
        tokens = token_ids.to(device).reshape(-1)
        positions = torch.arange(length, device=device).repeat(num_texts)
        slots = torch.arange(num_texts * length, device=device)
        group = kernels.QueryGroup(0, num_texts, length, length, slice(0, num_texts), None, True)  # a text is a block
        self.model = model
        self.step = StepInput(tokens, positions, slots, [group], slots)
        self.hidden = model.embedding.rows(tokens)  # [N · L, H]
        kv_shape = (num_texts, length, 2, config.num_kv_heads, config.head_dim)
        self._kv_cache = self.hidden.new_zeros(kv_shape)
        self._rotary = model.rotary.at(positions)

    @torch.no_grad()
    def through(self, layer: DecoderLayer) -> Iterator[Stop]:
        """Go through a layer, stopping at each of its matrices; at the end `hidden` is what the next layer gets."""
        config = self.model.config
        x = kernels.rms_norm(self.hidden, layer.input_norm, config.rms_norm_eps)
        yield Stop("qkv", x)
        heads = replace(layer, o=_unchanged).attend(x, config, self._rotary, self._kv_cache, self.step)
        yield Stop("o", heads)
        self.hidden = self.hidden + layer.o(heads)
        x = kernels.rms_norm(self.hidden, layer.post_attention_norm, config.rms_norm_eps)
        yield Stop("gate_up", x)
        x = kernels.silu_mul(layer.gate_up(x))
        yield Stop("down", x)
        self.hidden = self.hidden + layer.down(x)

    @torch.no_grad()
    def logits(self) -> torch.Tensor:
        """Return the logits of all tokens after the last layer, [N · L, V]."""
        return self.model.lm_head(kernels.rms_norm(self.hidden, self.model.norm, self.model.config.rms_norm_eps))

    @torch.no_grad()
    def logits_from(self, hidden: torch.Tensor, layers: list[DecoderLayer]) -> torch.Tensor:
        """Return the logits, [N · L, V], that `layers` make of hidden states [N · L, H]; `hidden` stays as it is."""
        kept, self.hidden = self.hidden, hidden
        try:
            for layer in layers:
                for _ in self.through(layer):
                    pass
            return self.logits()
        finally:
            self.hidden = kept


class _Unchanged:
    """A linear layer that hands on its input: the walk wants to see it."""

    weight_bytes = 0

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x


_unchanged: Linear = _Unchanged()
