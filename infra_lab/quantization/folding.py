"""Where a division of activations by a constant goes, so that it costs nothing: into whatever produced them.

    input of     is produced by                   x / s means
    qkv          RMSNorm, times its weight        norm / s
    gate_up      RMSNorm, times its weight        norm / s
    o            attention: a mix of values       the v rows of qkv / s; query heads that share a KV head must share s
    down         silu(gate) · up                  the up rows of gate_up / s

With the consumer's columns multiplied by s, the model computes the same as before.
"""

from dataclasses import replace
from typing import TypeVar

import torch

from infra_lab.quantization.grouped import GroupedInt

Rows = TypeVar("Rows", torch.Tensor, GroupedInt)


def divide_rows(weight: Rows, divisors: torch.Tensor) -> Rows:
    """Divide output channel o of a weight [out, in] by divisors[o]; of a quantized one, exactly: only its scales change."""
    if isinstance(weight, GroupedInt):
        return replace(weight, scale=weight.scale / divisors.unsqueeze(1))
    return (weight / divisors.unsqueeze(1)).to(weight.dtype)


def share_among_heads(channels: torch.Tensor, num_kv_heads: int, head_dim: int) -> torch.Tensor:
    """Give the query heads of each KV head the mean of their values: [Hq · D] → the same shape, equal within a group."""
    grouped = channels.view(num_kv_heads, -1, head_dim)  # [Hkv, Hq / Hkv, D]
    return grouped.mean(dim=1, keepdim=True).expand_as(grouped).reshape(-1)


def value_row_divisors(factors: torch.Tensor, num_heads: int, num_kv_heads: int, head_dim: int) -> torch.Tensor:
    """Return the divisors of qkv's rows, [(Hq + 2·Hkv) · D], for o's factors [Hq · D]: 1 but for v."""
    untouched = factors.new_ones((num_heads + num_kv_heads) * head_dim)
    return torch.cat([untouched, factors.view(num_kv_heads, -1, head_dim)[:, 0].reshape(-1)])


def up_row_divisors(factors: torch.Tensor) -> torch.Tensor:
    """Return the divisors of gate_up's rows, [2 · I], for down's factors [I]: 1 for gate."""
    return torch.cat([torch.ones_like(factors), factors])
