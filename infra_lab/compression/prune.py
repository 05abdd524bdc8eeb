"""Structured pruning: the least important heads, channels and layers are cut out, and a smaller dense model is left.

Every layer loses the same number of KV-head groups and of channels, since a configuration has one size for all; which ones is
each layer's own affair. What is left needs no special kernel: the matrices are smaller.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch

from infra_lab.compression.cutting import Kept, remove
from infra_lab.compression.distill import DistillConfig, DistillRecord, distill
from infra_lab.compression.importance import CRITERIA, Criterion, Importance, measure_importance
from infra_lab.compression.trainable import TrainableLM
from infra_lab.errors import ConfigError
from infra_lab.models.calibrated import Progress
from infra_lab.models.config import ModelConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneConfig:
    """Which share of each kind of part to remove, 0 ≤ share < 1, rounded to whole parts. Raises ConfigError otherwise."""

    heads: float = 0.0
    """Of KV-head groups: a KV head goes with its query heads, and the KV cache shrinks by as much."""
    channels: float = 0.0
    """Of MLP channels."""
    layers: float = 0.0
    criterion: Criterion = "taylor"
    """Of heads and channels: "taylor" or "activation"."""
    layer_criterion: Criterion = "influence"
    channel_multiple: int = 16
    """Keep a multiple of so many channels: GPU tiles and packed formats want whole blocks. More are kept than asked for, if
    need be, unless the model itself is no multiple."""

    def __post_init__(self) -> None:
        shares = {name: getattr(self, name) for name in ("heads", "channels", "layers")}
        for name, share in shares.items():
            if not 0 <= share < 1:
                raise ConfigError(f"{name} is {share}; it is the share to remove, from 0 to less than 1")
        if not any(shares.values()):
            raise ConfigError(
                "heads, channels and layers are all 0: nothing would be removed; give one of them a share"
            )
        for name in ("criterion", "layer_criterion"):
            if getattr(self, name) not in CRITERIA:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(CRITERIA)}")
        if self.criterion == "influence" and (self.heads or self.channels):
            raise ConfigError(
                "criterion is 'influence', which is of layers; heads and channels take taylor or activation"
            )
        if self.channel_multiple < 1:
            raise ConfigError(f"channel_multiple is {self.channel_multiple}; it must be at least 1")


@dataclass(frozen=True, slots=True)
class Pruned:
    """A smaller model, and how it came about."""

    model: TrainableLM
    kept: Kept
    importance: Importance
    """Of heads and channels by the one criterion, of layers by the other."""


def prune(
    model: TrainableLM, token_ids: torch.Tensor, config: PruneConfig, *, progress: Progress | None = None
) -> Pruned:
    """Measure on texts [N, T], choose, cut; the model given is unchanged.

    Raises ConfigError for a share that would remove all or none of a kind, and what `measure_importance` raises.
    """
    _counts(model.config, config)  # before any work
    wanted: list[Criterion] = [config.criterion] if config.heads or config.channels else []
    if config.layers and config.layer_criterion not in wanted:
        wanted.append(config.layer_criterion)

    def report(index: int) -> Progress | None:
        if progress is None:
            return None
        return lambda done, total: progress(index * total + done, len(wanted) * total)

    found = {
        criterion: measure_importance(model, token_ids, criterion, progress=report(index))
        for index, criterion in enumerate(wanted)
    }
    parts = found.get(config.criterion) or found[config.layer_criterion]
    layers = found.get(config.layer_criterion, parts).layers
    importance = Importance(parts.groups, parts.channels, layers)
    kept = choose(model.config, importance, config)
    return Pruned(remove(model, kept), kept, importance)


def choose(model: ModelConfig, importance: Importance, config: PruneConfig) -> Kept:
    """Return what stays: the layers that matter most, and in each of them the groups and channels that do."""
    num_layers, num_groups, num_channels = _counts(model, config)
    layers = _largest(importance.layers, num_layers)
    return Kept(
        layers,
        tuple(_largest(importance.groups[i], num_groups) for i in layers),
        tuple(_largest(importance.channels[i], num_channels) for i in layers),
    )


def recover(
    pruned: Pruned,
    original: TrainableLM,
    batches: Iterable[torch.Tensor],
    config: DistillConfig,
    *,
    progress: Progress | None = None,
) -> list[DistillRecord]:
    """Heal a pruned model, in place, by a short distillation from the one that it was cut out of (Minitron, 2024).

    Hidden states, if they count, are compared where the removed layers used to hand on to the ones that stay, unless the
    configuration has a `layer_map` of its own. Raises what `distill` raises.
    """
    if config.layer_map is None:
        config = replace(config, layer_map=pruned.kept.layer_map(original.config.num_layers))
    return distill(original, pruned.model, batches, config, progress=progress)


def _counts(model: ModelConfig, config: PruneConfig) -> tuple[int, int, int]:
    """How many layers, KV-head groups a layer and channels a layer stay."""
    num_layers = _left(model.num_layers, config.layers, "layers")
    num_groups = _left(model.num_kv_heads, config.heads, "KV-head groups")
    wanted = _left(model.intermediate_size, config.channels, "MLP channels")
    num_channels = min(model.intermediate_size, -(-wanted // config.channel_multiple) * config.channel_multiple)
    if config.channels and num_channels == model.intermediate_size:
        raise ConfigError(
            f"a share of {config.channels} of {model.intermediate_size} MLP channels leaves {wanted}, and in multiples of "
            f"{config.channel_multiple} that is all of them; raise the share, or lower channel_multiple"
        )
    return num_layers, num_groups, num_channels


def _left(count: int, share: float, what: str) -> int:
    removed = math.ceil(share * count - 0.5)  # to the nearest, a half down
    if removed == count:
        raise ConfigError(f"a share of {share} removes all {count} {what}; at least one has to stay")
    if share and not removed:
        raise ConfigError(f"a share of {share} removes none of {count} {what}; one of them is {1 / count:.3f}")
    return count - removed


def _largest(scores: torch.Tensor, count: int) -> tuple[int, ...]:
    order = scores.argsort(descending=True, stable=True)[:count]
    return tuple(sorted(order.tolist()))
