"""Cut a model down to some of its parts: smaller matrices, copied; no mask stays behind.

q, o      rows, columns of the query heads of the KV-head groups that stay
k, v      rows of their KV heads
gate, up  rows, and down columns, of the channels that stay
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from infra_lab.compression.trainable import TrainableLM
from infra_lab.errors import ConfigError
from infra_lab.models.config import ModelConfig


@dataclass(frozen=True, slots=True)
class Kept:
    """What stays, by indices into the original model, each in rising order."""

    layers: tuple[int, ...]
    groups: tuple[tuple[int, ...], ...]
    """KV-head groups of each layer in `layers`."""
    channels: tuple[tuple[int, ...], ...]
    """MLP channels of each layer in `layers`."""

    def layer_map(self, num_layers: int) -> tuple[int, ...]:
        """For each layer that stays, the original layer whose output the next one that stays was trained to read."""
        return (*(following - 1 for following in self.layers[1:]), num_layers - 1)


@torch.no_grad()
def remove(model: TrainableLM, kept: Kept) -> TrainableLM:
    """Return a new, smaller model with copies of what stays: the same function as the old one with all else multiplied by 0.

    Raises ConfigError for indices that are none of the model's, and for layers that would end with different sizes.
    """
    old = model.config
    _check_kept(old, kept)
    new = replace(
        old,
        num_layers=len(kept.layers),
        num_heads=old.num_heads // old.num_kv_heads * len(kept.groups[0]),
        num_kv_heads=len(kept.groups[0]),
        intermediate_size=len(kept.channels[0]),
    )
    return TrainableLM(new, _smaller(model, kept))


def _smaller(model: TrainableLM, kept: Kept) -> Iterator[tuple[str, torch.Tensor]]:
    weights: dict[str, torch.Tensor] = model.state_dict()
    for name, weight in weights.items():
        if not name.startswith("model.layers."):
            yield name, weight.clone()
    for index, (layer, groups, channels) in enumerate(zip(kept.layers, kept.groups, kept.channels, strict=True)):
        prefix = f"model.layers.{layer}."
        for name, weight in weights.items():
            if name.startswith(prefix):
                module = name.removeprefix(prefix)
                yield f"model.layers.{index}.{module}", _cut(weight, module, groups, channels, model.config)


def _cut(
    weight: torch.Tensor, module: str, groups: Sequence[int], channels: Sequence[int], config: ModelConfig
) -> torch.Tensor:
    """Return a copy of the rows or columns that stay."""
    name = module.rpartition(".")[0]
    dim = 1 if name in ("self_attn.o_proj", "mlp.down_proj") else 0
    if dim and weight.ndim == 1:  # the bias of what adds to the residual stream
        return weight.clone()
    match name:
        case "self_attn.q_proj" | "self_attn.o_proj":
            kept = _columns(groups, config.head_dim * (config.num_heads // config.num_kv_heads))
        case "self_attn.k_proj" | "self_attn.v_proj":
            kept = _columns(groups, config.head_dim)
        case "mlp.gate_proj" | "mlp.up_proj" | "mlp.down_proj":
            kept = torch.tensor(channels)
        case _:
            return weight.clone()
    return weight.index_select(dim, kept.to(weight.device))


def _columns(groups: Sequence[int], width: int) -> torch.Tensor:
    return (torch.tensor(groups).unsqueeze(1) * width + torch.arange(width)).flatten()


def _check_kept(config: ModelConfig, kept: Kept) -> None:
    if not len(kept.layers) == len(kept.groups) == len(kept.channels):
        raise ConfigError("groups and channels must be given for each layer that stays, and for no other")
    _check_indices(kept.layers, config.num_layers, "layers")
    for what, rows, count in (
        ("KV-head groups", kept.groups, config.num_kv_heads),
        ("MLP channels", kept.channels, config.intermediate_size),
    ):
        for row in rows:
            _check_indices(row, count, what)
        if len({len(row) for row in rows}) != 1:
            raise ConfigError(f"layers would keep {[len(row) for row in rows]} {what}; a model has one number for all")


def _check_indices(indices: Sequence[int], count: int, what: str) -> None:
    if not indices or list(indices) != sorted(set(indices)) or indices[0] < 0 or indices[-1] >= count:
        raise ConfigError(f"{what} to keep are {list(indices)[:8]}; expected some of 0 to {count - 1}, in rising order")
