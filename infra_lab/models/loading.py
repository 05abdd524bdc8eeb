"""From a checkpoint, tensor by tensor, to a model ready to run.

Each weight goes straight to its place: query, key and value rows into one matrix, gate and up rows into another. A matrix
is quantized as soon as its last rows have come, so the model never exists twice in memory.
"""

from collections.abc import Iterator

import torch

from infra_lab.errors import CorruptModelError
from infra_lab.models.config import ModelConfig
from infra_lab.models.rope import RotaryTable
from infra_lab.models.transformer import CausalLM, DecoderLayer
from infra_lab.models.weights import Checkpoint
from infra_lab.quantization import Linear, LinearScheme


class _Parts:
    """Rows of one matrix that come as several tensors, collected in order into one buffer."""

    def __init__(self, sizes: dict[str, int]) -> None:
        self.offsets: dict[str, tuple[int, int]] = {}
        offset = 0
        for name, size in sizes.items():
            self.offsets[name] = (offset, size)
            offset += size
        self.num_rows = offset
        self.buffer: torch.Tensor | None = None
        self.missing = set(sizes)

    def put(self, name: str, tensor: torch.Tensor) -> torch.Tensor | None:
        """Store one part; return the whole once it is complete."""
        if len(self.offsets) == 1:
            return tensor
        if self.buffer is None:
            self.buffer = tensor.new_empty(self.num_rows, *tensor.shape[1:])
        offset, size = self.offsets[name]
        self.buffer[offset : offset + size] = tensor
        self.missing.discard(name)
        return None if self.missing else self.buffer


def _fused_matrices(config: ModelConfig) -> dict[str, dict[str, int]]:
    """Our matrices of a layer, and the rows that each checkpoint matrix brings to them."""
    return {
        "qkv": {
            "self_attn.q_proj": config.q_size,
            "self_attn.k_proj": config.kv_size,
            "self_attn.v_proj": config.kv_size,
        },
        "o": {"self_attn.o_proj": config.hidden_size},
        "gate_up": {"mlp.gate_proj": config.intermediate_size, "mlp.up_proj": config.intermediate_size},
        "down": {"mlp.down_proj": config.hidden_size},
    }


_NORMS = {
    "input_layernorm": "input_norm",
    "post_attention_layernorm": "post_attention_norm",
    "self_attn.q_norm": "q_norm",
    "self_attn.k_norm": "k_norm",
}


class _LayerBuilder:
    """Collects one layer's tensors and builds each linear layer when its weight (and bias) are complete."""

    def __init__(self, config: ModelConfig, index: int, scheme: LinearScheme) -> None:
        self.scheme, self.prefix = scheme, f"model.layers.{index}."
        self.parts: dict[tuple[str, str], _Parts] = {}
        self.target_of: dict[str, str] = {}
        self.has_bias = {
            "qkv": config.qkv_bias,
            "o": config.o_bias,
            "gate_up": config.mlp_bias,
            "down": config.mlp_bias,
        }
        for target, sizes in _fused_matrices(config).items():
            for kind in ("weight", "bias"):
                self.parts[target, kind] = _Parts(sizes)
            self.target_of.update(dict.fromkeys(sizes, target))
        self.complete: dict[tuple[str, str], torch.Tensor] = {}
        self.linears: dict[str, Linear] = {}
        self.norms: dict[str, torch.Tensor] = {}

    def put(self, name: str, tensor: torch.Tensor) -> None:
        """Take a tensor, its name without the layer's prefix, e.g. "self_attn.q_proj.weight"."""
        module, kind = name.rsplit(".", 1)
        if module in _NORMS:
            self.norms[_NORMS[module]] = tensor
            return
        target = self.target_of[module]
        whole = self.parts[target, kind].put(module, tensor)
        if whole is None:
            return
        self.complete[target, kind] = whole
        if (target, "weight") in self.complete and (not self.has_bias[target] or (target, "bias") in self.complete):
            weight, bias = self.complete.pop((target, "weight")), self.complete.pop((target, "bias"), None)
            self.parts[target, "weight"].buffer = None
            self.linears[target] = self.scheme.build(weight, bias, self.prefix + target)

    def build(self) -> DecoderLayer:
        """Return the finished layer."""
        missing = [target for target in self.has_bias if target not in self.linears]
        if missing or "input_norm" not in self.norms or "post_attention_norm" not in self.norms:
            raise CorruptModelError(
                f"{self.prefix}* is incomplete: {missing or 'a norm'} missing; fetch the model again"
            )
        return DecoderLayer(**self.norms, **self.linears)  # type: ignore[arg-type]


def load_model(
    checkpoint: Checkpoint, *, dtype: torch.dtype, device: torch.device, scheme: LinearScheme, max_model_len: int
) -> CausalLM:
    """Build the model from its checkpoint in `dtype` on `device`, the linear layers as `scheme` says.

    Raises CorruptModelError for missing or misshapen tensors, ConfigError for a scheme that does not fit.
    """
    config = checkpoint.config
    builders = [_LayerBuilder(config, index, scheme) for index in range(config.num_layers)]
    outer: dict[str, torch.Tensor] = {}
    for name, tensor in _on_device(checkpoint, dtype, device):
        if name.startswith("model.layers."):
            index, rest = name.removeprefix("model.layers.").split(".", 1)
            builders[int(index)].put(rest, tensor)
        else:
            outer[name] = tensor
    embedding = scheme.build_embedding(outer.pop("model.embed_tokens.weight"))
    if config.tie_word_embeddings:
        lm_head = scheme.build_tied_head(embedding)
    elif scheme.kind == "dense":
        lm_head = scheme.build(outer.pop("lm_head.weight"), None, "lm_head")
    else:
        lm_head = scheme.build_embedding(outer.pop("lm_head.weight"))
    return CausalLM(
        config=config,
        embedding=embedding,
        layers=[builder.build() for builder in builders],
        norm=outer.pop("model.norm.weight"),
        lm_head=lm_head,
        rotary=RotaryTable(config, max_model_len, dtype, device),
    )


def _on_device(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in checkpoint.tensors(dtype):
        yield name, tensor.to(device)
