"""How much each part of a model matters, measured on texts: KV-head groups, MLP channels, whole layers.

    group     a key and value head with all query heads that share it: removing it leaves GQA's ratio as it was
    channel   a row of gate and of up, and the column of down behind them
    layer     attention and MLP together

Group and channel end in columns of a matrix that adds to the residual stream (o or down), so that scaling these columns is
scaling the part: by 0 removes it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, get_args

import torch
from torch import nn

from infra_lab.compression.losses import hard_loss
from infra_lab.compression.trainable import TrainableLM
from infra_lab.errors import ConfigError
from infra_lab.models.calibrated import Progress

Criterion = Literal["taylor", "activation", "influence"]
CRITERIA: tuple[str, ...] = get_args(Criterion)


@dataclass(frozen=True, slots=True)
class Importance:
    """Scores on the CPU in float64, to be compared within a row; what they measure depends on the criterion."""

    groups: torch.Tensor
    """[L, Hkv]."""
    channels: torch.Tensor
    """[L, I]."""
    layers: torch.Tensor
    """[L]."""


def measure_importance(
    model: TrainableLM, token_ids: torch.Tensor, criterion: Criterion, *, progress: Progress | None = None
) -> Importance:
    """Score every part on texts [N, T], one text at a time; the model is unchanged.

    taylor      mean over texts of |Σ w · ∂loss/∂w| over the part's columns: how much the loss would change, to first order, if
                the part were removed (Molchanov 2017, Michel 2019)
    activation  root mean square, over tokens, of the length of what the part adds to the residual stream; for a layer as a
                share of the length of what comes in
    influence   layers only: 1 - mean cosine of what comes in and what goes out (block influence, ShortGPT, Men 2024);
                groups and channels are 0

    Raises ConfigError for an unknown criterion, no or too short texts, and weights or scores that are not finite, naming them.
    """
    if criterion not in CRITERIA:
        raise ConfigError(f"criterion is {criterion!r}; expected one of {', '.join(CRITERIA)}")
    if token_ids.ndim != 2 or token_ids.shape[0] < 1 or token_ids.shape[1] < 2:
        raise ConfigError(
            f"texts of shape {list(token_ids.shape)}; expected [texts, tokens], at least one of two tokens"
        )
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise ConfigError(f"{name} has NaN or infinite weights; load the model again")
    config, device = model.config, model.embedding.device
    sums = Importance(
        torch.zeros(config.num_layers, config.num_kv_heads, dtype=torch.float64),
        torch.zeros(config.num_layers, config.intermediate_size, dtype=torch.float64),
        torch.zeros(config.num_layers, dtype=torch.float64),
    )
    score = {"taylor": _add_taylor, "activation": _add_activation, "influence": _add_influence}[criterion]
    texts = torch.split(token_ids.to(device), 1)
    for done, text in enumerate(texts, 1):
        score(model, text, sums)
        if progress is not None:
            progress(done, len(texts))
    means = [part / len(texts) for part in (sums.groups, sums.channels, sums.layers)]
    if criterion == "activation":  # sums of squares until here
        means = [part.sqrt() for part in means]
    for index in range(config.num_layers):
        if not all(torch.isfinite(part[index]).all() for part in means):
            raise ConfigError(f"layer {index} has scores that are not finite: its numbers overflow; load it in float32")
    return Importance(*means)


def _add_taylor(model: TrainableLM, text: torch.Tensor, sums: Importance) -> None:
    attention = [layer.self_attn.o_proj for layer in model.layers]
    mlp = [layer.mlp.down_proj for layer in model.layers]
    with torch.enable_grad(), _trainable(model):
        loss = hard_loss(model(text).logits, text)
        matrices = [linear.weight for linear in (*attention, *mlp)]
        gradients = torch.autograd.grad(loss, matrices)
    products = [
        (w.detach() * g).double().sum(dim=0).cpu() for w, g in zip(matrices, gradients, strict=True)
    ]  # [in] each
    for index in range(model.config.num_layers):
        heads, channels = products[index], products[model.config.num_layers + index]
        groups = heads.view(model.config.num_kv_heads, -1).sum(dim=1)
        sums.groups[index] += groups.abs()
        sums.channels[index] += channels.abs()
        sums.layers[index] += (heads.sum() + channels.sum()).abs()


@torch.no_grad()
def _add_activation(model: TrainableLM, text: torch.Tensor, sums: Importance) -> None:
    num_groups = model.config.num_kv_heads
    attention = [layer.self_attn.o_proj for layer in model.layers]
    mlp = [layer.mlp.down_proj for layer in model.layers]
    with _inputs_of(attention) as heads, _inputs_of(mlp) as channels:
        hidden = [x[0].double() for x in model(text).hidden]
    for index, layer in enumerate(model.layers):
        mixed = heads[index][0].double().view(text.shape[1], num_groups, -1)  # [T, Hkv, width of a group]
        weight = layer.self_attn.o_proj.weight.double().view(-1, num_groups, mixed.shape[2])  # [H, Hkv, width]
        added = torch.einsum("tgw,hgw->tgh", mixed, weight)
        sums.groups[index] += added.square().sum(dim=2).mean(dim=0).cpu()
        lengths = layer.mlp.down_proj.weight.double().square().sum(dim=0)  # [I]
        sums.channels[index] += (channels[index][0].double().square().mean(dim=0) * lengths).cpu()
        before, after = hidden[index], hidden[index + 1]
        share = (after - before).square().sum(dim=1) / before.square().sum(dim=1)
        sums.layers[index] += share.mean().cpu()


@torch.no_grad()
def _add_influence(model: TrainableLM, text: torch.Tensor, sums: Importance) -> None:
    hidden = [x[0].double() for x in model(text).hidden]
    for index, (before, after) in enumerate(pairwise(hidden)):
        sums.layers[index] += 1 - torch.cosine_similarity(before, after, dim=1).mean().cpu()


@contextmanager
def _trainable(model: TrainableLM) -> Iterator[None]:
    """Let gradients reach the weights, also of a model that was frozen."""
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


@contextmanager
def _inputs_of(linears: list[nn.Linear]) -> Iterator[list[torch.Tensor]]:
    """Collect what each of some matrices gets in one forward pass, in the order in which it gets there."""
    seen: list[torch.Tensor] = []

    def look(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        seen.append(arguments[0])

    handles = [linear.register_forward_pre_hook(look) for linear in linears]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
