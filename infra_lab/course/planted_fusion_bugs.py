"""Three ways in which a fused kernel goes wrong, planted on purpose: section 3.3 has the learner find them.

A   normalises what came in, and not yet the sum
B   adds in its registers, and does not write the sum back
C   takes the softmax in tiles, each with its own maximum, and adds up what does not belong together

Each is a thing that a fusion must carry over from the operations that it replaces, and does not.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

import kernels
from infra_lab.errors import ConfigError
from kernels.norms import rms_norm_reference

TILE = 16
"""Keys of a tile in C: with no more than these there is nothing to combine, and nothing wrong."""


def _normalises_too_early(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    y = rms_norm_reference(x, weight, eps)
    residual += x
    return y


def _keeps_the_sum(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return rms_norm_reference(residual + x, weight, eps)


def _never_rescales(
    query: torch.Tensor, kv_cache: torch.Tensor, groups: list[kernels.QueryGroup], out: torch.Tensor | None = None
) -> torch.Tensor:
    num_heads, head_dim = query.shape[1:]
    parts = []
    for group in groups:
        key, value = _keys_and_values(kv_cache, group, num_heads)  # [B, Hq, Tk, D]
        rows = query[group.start : group.start + group.num_sequences * group.query_len]
        heads = rows.view(group.num_sequences, group.query_len, num_heads, head_dim).transpose(1, 2)  # [B, Hq, Tq, D]
        scores = heads @ key.transpose(2, 3) / head_dim**0.5  # [B, Hq, Tq, Tk]
        if group.mask is not None:
            scores = scores + group.mask
        if group.is_causal:
            scores = scores.masked_fill(torch.ones_like(scores[0, 0]).triu(1).bool(), float("-inf"))
        attended, total = torch.zeros_like(heads), torch.zeros_like(heads[..., :1])
        for tile, values in zip(torch.split(scores, TILE, dim=-1), torch.split(value, TILE, dim=2), strict=True):
            peak = tile.amax(dim=-1, keepdim=True).clamp_min(torch.finfo(tile.dtype).min)
            weights = torch.exp(tile - peak)  # relative to this tile's maximum, and never again to the row's
            attended, total = attended + weights @ values, total + weights.sum(dim=-1, keepdim=True)
        parts.append((attended / total).transpose(1, 2).reshape(-1, num_heads, head_dim))
    return torch.cat(parts)


def _keys_and_values(
    kv_cache: torch.Tensor, group: kernels.QueryGroup, num_heads: int
) -> tuple[torch.Tensor, torch.Tensor]:
    rows = kv_cache[group.blocks].view(group.num_sequences, -1, *kv_cache.shape[2:])[:, : group.key_len]
    by_head = rows.permute(2, 0, 3, 1, 4).repeat_interleave(num_heads // kv_cache.shape[3], dim=2)  # [2, B, Hq, Tk, D]
    return by_head[0], by_head[1]


FUSION_BUGS: dict[str, dict[str, Callable[..., Any]]] = {
    "none": {},
    "A": {"add_rms_norm": _normalises_too_early},
    "B": {"add_rms_norm": _keeps_the_sum},
    "C": {"paged_attention": _never_rescales},
}
"""By name: which of the engine's kernels are replaced, by what."""


@contextmanager
def planted_fusion_bug(name: str) -> Iterator[None]:
    """Have the engine run with one of the bugs in this block. Raises ConfigError for an unknown one."""
    if name not in FUSION_BUGS:
        raise ConfigError(f"there is no bug {name!r}; there are {', '.join(FUSION_BUGS)}")
    right = {kernel: getattr(kernels, kernel) for kernel in FUSION_BUGS[name]}
    try:
        for kernel, wrong in FUSION_BUGS[name].items():
            setattr(kernels, kernel, wrong)
        yield
    finally:
        for kernel, function in right.items():
            setattr(kernels, kernel, function)
