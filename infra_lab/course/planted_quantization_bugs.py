"""Three ways in which quantization goes wrong, planted on purpose: section 3.4 has the learner find them.

A   rounds each group on the grid of the group before it
B   packs the two halves of a byte the other way round
C   has GPTQ spread its errors with the wrong sign

Each leaves shapes, sizes and speed as they were, and each is seen by one invariant that the others pass.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import ModuleType
from typing import Any

import torch

from infra_lab.errors import ConfigError
from infra_lab.quantization import cpu_int4, gptq, grouped, linear_int4
from infra_lab.quantization.grouped import GroupedInt

_round_to_grid, _pack, _inverse_factor = grouped.round_to_grid, cpu_int4.pack_cpu_int4, gptq.inverse_factor


def _on_the_neighbours_grid(
    w: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, bits: int, group_size: int
) -> GroupedInt:
    rounded = _round_to_grid(w, scale.roll(1, dims=1), zero.roll(1, dims=1), bits, group_size)
    return replace(rounded, scale=scale, zero=zero)


def _halves_swapped(q: torch.Tensor) -> torch.Tensor:
    return _pack(q.view(q.shape[0], -1, 2).flip(2).reshape(q.shape))


def _wrong_sign(hessian: torch.Tensor, damping: float = gptq.DAMPING, name: str = "the weight") -> torch.Tensor:
    factor = _inverse_factor(hessian, damping, name)
    return 2 * torch.diag(factor.diagonal()) - factor


QUANTIZATION_BUGS: dict[str, tuple[ModuleType, str, Callable[..., Any]] | None] = {
    "none": None,
    "A": (grouped, "round_to_grid", _on_the_neighbours_grid),
    "B": (linear_int4, "pack_cpu_int4", _halves_swapped),
    "C": (gptq, "inverse_factor", _wrong_sign),
}
"""By name: where the package looks up which function, and what stands there instead."""


@contextmanager
def planted_quantization_bug(name: str) -> Iterator[None]:
    """Have the package quantize with one of the bugs in this block. Raises ConfigError for an unknown one."""
    if name not in QUANTIZATION_BUGS:
        raise ConfigError(f"there is no bug {name!r}; there are {', '.join(QUANTIZATION_BUGS)}")
    planted = QUANTIZATION_BUGS[name]
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
