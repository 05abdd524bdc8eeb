"""Three ways in which pruning goes wrong, planted on purpose: section 3.4 has the learner find them.

A   takes a KV head's query heads for interleaved: head g, g + Hkv, g + 2 Hkv … instead of a block of neighbours
B   ranks the parts of a layer by the scores of the layer that stood at its new place
C   hands on what is not cut without a copy, so that recovery trains the original too

Each leaves shapes, sizes and speed as they were, and each is seen by one invariant that the others pass.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch

from infra_lab.compression import cutting, prune
from infra_lab.compression.cutting import Kept
from infra_lab.compression.importance import Importance
from infra_lab.compression.prune import PruneConfig
from infra_lab.compression.trainable import TrainableLM
from infra_lab.errors import ConfigError
from infra_lab.models.config import ModelConfig

_cut, _choose, _smaller = cutting._cut, prune.choose, cutting._smaller


def _interleaved(
    weight: torch.Tensor, module: str, groups: Sequence[int], channels: Sequence[int], config: ModelConfig
) -> torch.Tensor:
    name = module.rpartition(".")[0]
    whole = len(groups) == config.num_kv_heads
    if whole or name not in ("self_attn.q_proj", "self_attn.o_proj") or (name.endswith("o_proj") and weight.ndim == 1):
        return _cut(weight, module, groups, channels, config)
    heads = [
        group + offset * config.num_kv_heads
        for group in groups
        for offset in range(config.num_heads // config.num_kv_heads)
    ]
    rows = (torch.tensor(heads).unsqueeze(1) * config.head_dim + torch.arange(config.head_dim)).flatten()
    return weight.index_select(1 if name.endswith("o_proj") else 0, rows.to(weight.device))


def _by_the_new_place(model: ModelConfig, importance: Importance, config: PruneConfig) -> Kept:
    right = _choose(model, importance, config)
    moved = list(right.layers)
    groups, channels = importance.groups.clone(), importance.channels.clone()
    groups[moved], channels[moved] = groups[: len(moved)].clone(), channels[: len(moved)].clone()
    return _choose(model, Importance(groups, channels, importance.layers), config)


def _shared(model: TrainableLM, kept: Kept) -> Iterator[tuple[str, torch.Tensor]]:
    weights = model.state_dict()
    for name, weight in _smaller(model, kept):
        yield name, weight if name.startswith("model.layers.") else weights[name]


PRUNING_BUGS: dict[str, tuple[ModuleType, str, Callable[..., Any]] | None] = {
    "none": None,
    "A": (cutting, "_cut", _interleaved),
    "B": (prune, "choose", _by_the_new_place),
    "C": (cutting, "_smaller", _shared),
}
"""By name: where the package looks up which function, and what stands there instead."""


@contextmanager
def planted_pruning_bug(name: str) -> Iterator[None]:
    """Have the package prune with one of the bugs in this block. Raises ConfigError for an unknown one."""
    if name not in PRUNING_BUGS:
        raise ConfigError(f"there is no bug {name!r}; there are {', '.join(PRUNING_BUGS)}")
    planted = PRUNING_BUGS[name]
    if planted is None:
        yield
        return
    module, function, wrong = planted
    right = getattr(module, function)
    try:
        setattr(module, function, wrong)
        yield
    finally:
        setattr(module, function, right)
