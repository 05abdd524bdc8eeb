"""From a checkpoint, tensor by tensor, to a model ready to run.

Each weight goes straight to its place: query, key and value rows into one matrix, gate and up rows into another. A matrix
is quantized as soon as its last rows have come, so the model never exists twice in memory.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import cast

import torch

from infra_lab.errors import ConfigError, CorruptModelError
from infra_lab.models.config import ModelConfig
from infra_lab.models.quantized_folder import QuantizedFolder
from infra_lab.models.rope import RotaryTable
from infra_lab.models.transformer import CausalLM, DecoderLayer
from infra_lab.models.weights import BlockCheckpoint, Checkpoint
from infra_lab.models.weights_shapes import NORM_FIELDS
from infra_lab.quantization import Linear, LinearScheme
from infra_lab.quantization.grouped import GroupedInt
from infra_lab.quantization.recipes import DENSE
from infra_lab.quantization.schemes import LoadedWeight


class _Parts:
    """Rows of one matrix that come as several tensors, collected in order: into one buffer, if they are plain numbers."""

    def __init__(self, sizes: dict[str, int]) -> None:
        self.offsets: dict[str, tuple[int, int]] = {}
        offset = 0
        for name, size in sizes.items():
            self.offsets[name] = (offset, size)
            offset += size
        self.num_rows = offset
        self.buffer: torch.Tensor | None = None
        self.blocks: dict[str, LoadedWeight] = {}
        self.missing = set(sizes)

    def put(self, name: str, tensor: LoadedWeight) -> list[LoadedWeight] | None:
        """Store one part; once complete, return the whole, as one weight or as parts of different kinds."""
        self.missing.discard(name)
        if len(self.offsets) == 1:
            return [tensor]
        offset, size = self.offsets[name]
        if isinstance(tensor, GroupedInt):
            self.blocks[name] = tensor
        else:
            if self.buffer is None:
                self.buffer = tensor.new_empty(self.num_rows, *tensor.shape[1:])
            self.buffer[offset : offset + size] = tensor
        return None if self.missing else self._whole()

    def _whole(self) -> list[LoadedWeight]:
        if not self.blocks:
            return [cast(torch.Tensor, self.buffer)]
        parts: list[LoadedWeight] = []
        for name, (offset, size) in self.offsets.items():
            part = self.blocks.get(name)
            parts.append(part if part is not None else cast(torch.Tensor, self.buffer)[offset : offset + size].clone())
        first = parts[0]
        if isinstance(first, GroupedInt) and all(_has_grid_of(part, first) for part in parts):
            alike = cast(list[GroupedInt], parts)
            q, scale, zero = (torch.cat([getattr(part, field) for part in alike]) for field in ("q", "scale", "zero"))
            return [replace(first, q=q, scale=scale, zero=zero)]
        return parts


def _has_grid_of(part: LoadedWeight, first: GroupedInt) -> bool:
    return isinstance(part, GroupedInt) and (part.bits, part.group_size) == (first.bits, first.group_size)


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


class _LayerBuilder:
    """Collects one layer's tensors and builds each linear layer when its weight (and bias) are complete."""

    def __init__(self, config: ModelConfig, index: int, scheme: LinearScheme, dtype: torch.dtype) -> None:
        self.scheme, self.dtype, self.prefix = scheme, dtype, f"model.layers.{index}."
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
        self.complete: dict[tuple[str, str], list[LoadedWeight]] = {}
        self.linears: dict[str, Linear] = {}
        self.norms: dict[str, torch.Tensor] = {}

    def put(self, name: str, tensor: LoadedWeight) -> None:
        """Take a tensor, its name without the layer's prefix, e.g. "self_attn.q_proj.weight"."""
        module, kind = name.rsplit(".", 1)
        if module in NORM_FIELDS:
            self.norms[NORM_FIELDS[module]] = cast(torch.Tensor, tensor)
            return
        target = self.target_of[module]
        whole = self.parts[target, kind].put(module, tensor)
        if whole is None:
            return
        self.complete[target, kind] = whole
        if (target, "weight") in self.complete and (not self.has_bias[target] or (target, "bias") in self.complete):
            parts = self.complete.pop((target, "weight"))
            bias = cast(torch.Tensor, self.complete.pop((target, "bias"))[0]) if self.has_bias[target] else None
            del self.parts[target, "weight"]
            name = self.prefix + target
            if len(parts) == 1:
                self.linears[target] = self.scheme.build(parts[0], bias, name, dtype=self.dtype)
            else:
                self.linears[target] = self.scheme.build_joined(parts, bias, name, dtype=self.dtype)

    def build(self) -> DecoderLayer:
        """Return the finished layer."""
        missing = [target for target in self.has_bias if target not in self.linears]
        if missing or "input_norm" not in self.norms or "post_attention_norm" not in self.norms:
            raise CorruptModelError(
                f"{self.prefix}* is incomplete: {missing or 'a norm'} missing; fetch the model again"
            )
        return DecoderLayer(**self.norms, **self.linears)  # type: ignore[arg-type]


def load_model(
    checkpoint: Checkpoint,
    *,
    dtype: torch.dtype,
    device: torch.device,
    scheme: LinearScheme,
    max_model_len: int,
    progress: Callable[[int, int], None] | None = None,
) -> CausalLM:
    """Build the model from its checkpoint in `dtype` on `device`, the linear layers as `scheme` says.

    `progress` is called with (done, total) after each tensor.

    Raises CorruptModelError for missing or misshapen tensors, ConfigError for a scheme that does not fit.
    """
    if isinstance(checkpoint, QuantizedFolder):
        if scheme.recipe.name not in (DENSE.name, checkpoint.scheme):
            raise ConfigError(
                f"{checkpoint.path} is quantized already ({checkpoint.scheme}), not {scheme.recipe.name}; "
                "leave quantization out"
            )
        return checkpoint.load(dtype=dtype, device=device, max_model_len=max_model_len)
    config = checkpoint.config
    builders = [_LayerBuilder(config, index, scheme, dtype) for index in range(config.num_layers)]
    outer: dict[str, LoadedWeight] = {}
    num_tensors = len(checkpoint.tensor_names())
    for done, (name, tensor) in enumerate(_on_device(checkpoint, dtype, device, scheme)):
        if name.startswith("model.layers."):
            index, rest = name.removeprefix("model.layers.").split(".", 1)
            builders[int(index)].put(rest, tensor)
        else:
            outer[name] = tensor
        if progress is not None:
            progress(done + 1, num_tensors)
    embedding = scheme.build_embedding(outer.pop("model.embed_tokens.weight"), dtype=dtype)
    if config.tie_word_embeddings:
        lm_head = scheme.build_tied_head(embedding, dtype=dtype)
    elif scheme.is_dense or scheme.keeps_blocks:
        lm_head = scheme.build(outer.pop("lm_head.weight"), None, "lm_head", dtype=dtype)
    else:
        lm_head = scheme.build_embedding(outer.pop("lm_head.weight"), dtype=dtype)
    return CausalLM(
        config=config,
        embedding=embedding,
        layers=[builder.build() for builder in builders],
        norm=cast(torch.Tensor, outer.pop("model.norm.weight")),
        lm_head=lm_head,
        rotary=RotaryTable(config, max_model_len, dtype, device),
    )


def _on_device(
    checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, scheme: LinearScheme
) -> Iterator[tuple[str, LoadedWeight]]:
    if not scheme.keeps_blocks:
        for name, tensor in checkpoint.tensors(dtype):
            yield name, tensor.to(device)
        return
    if not isinstance(checkpoint, BlockCheckpoint):
        raise ConfigError(
            f"{checkpoint.path} is no .gguf file, so it has no blocks to keep; quantization 'gguf' needs one"
        )
    for name, weight in checkpoint.blocks(dtype):
        if isinstance(weight, GroupedInt):
            q, scale, zero = (part.to(device) for part in (weight.q, weight.scale, weight.zero))
            yield name, replace(weight, q=q, scale=scale, zero=zero)
        else:
            yield name, weight.to(device)
