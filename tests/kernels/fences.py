"""Memory with a fence on both sides, and a watch over who climbs it.

    |  poison  |  tensor, with poison in the gaps between its rows  |  poison  |

A GPU reads beyond the end of a tensor and says nothing, and so does the interpreter.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from unittest.mock import patch

import torch

from kernels.trace import record
from tests.kernels.launches import Tensors

FENCE = 64
"""Elements; a multiple of 16 bytes, so that what was aligned stays so."""


class Fences:
    """Tensors that it has made are in `inside`, by name; it knows whether poison was written over."""

    def __init__(self, poison: float) -> None:
        self.poison = poison
        self.inside: Tensors = {}
        self._arenas: list[tuple[torch.Tensor, torch.Tensor]] = []

    def make(self, name: str, shape: torch.Size, stride: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Return a tensor full of poison between fences of it."""
        extent = sum((size - 1) * step for size, step in zip(shape, stride, strict=True)) + 1 if 0 not in shape else 0
        arena = torch.zeros(extent + 2 * FENCE, dtype=dtype)
        if dtype.is_floating_point:
            arena.copy_(torch.zeros(arena.shape).fill_(self.poison))  # FP8 itself has no fill
        else:
            arena.fill_(0 if self.poison != self.poison else 1)  # an index that can be followed without a crash
        made = arena.as_strided(shape, stride, FENCE)
        real = torch.zeros_like(arena, dtype=torch.bool)
        real.as_strided(shape, stride, FENCE).fill_(True)
        self._arenas.append((arena, ~real))
        self.inside[name] = made
        return made

    def assert_intact(self) -> None:
        for name, (arena, is_fence) in zip(self.inside, self._arenas, strict=True):
            fence = arena[is_fence].double().nan_to_num(nan=-7.0)
            assert (fence == fence[0]).all(), f"something was written beside {name}"


@contextmanager
def fenced(inputs: Tensors, poison: float) -> Iterator[tuple[Tensors, Fences]]:
    """Copy the inputs between fences, and let `torch.empty` and `torch.full` make tensors between fences in the block.

    Afterwards every load and store must have been to one of these tensors, and no fence be changed.
    """
    fences = Fences(poison)
    copies = {}
    for name, tensor in inputs.items():
        copies[name] = fences.make(name, tensor.shape, tensor.stride(), tensor.dtype).copy_(tensor)

    def empty(*shape: object, dtype: torch.dtype = torch.float32, device: object = None) -> torch.Tensor:
        size = torch.Size(shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape)  # type: ignore[arg-type]
        stride = tuple(prod(size[i + 1 :]) for i in range(len(size)))
        return fences.make(f"made {len(fences.inside)}", size, stride, dtype)

    def full(shape: tuple[int, ...], value: float, dtype: torch.dtype, device: object = None) -> torch.Tensor:
        return empty(shape, dtype=dtype).fill_(value)

    with record(fences.inside) as accesses, patch.object(torch, "empty", empty), patch.object(torch, "full", full):
        yield copies, fences
    fences.assert_intact()
    strays = [access for access in accesses if not access.tensor]
    assert not strays, f"{len(strays)} accesses beyond all tensors, the first a {strays[0].kind} of {strays[0].program}"
