"""A launcher with its operands, at any size and on any device, beside its formula in float64."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from tests.kernels.conftest import assert_close

Tensors = dict[str, torch.Tensor]
EPS = 1e-5


class Size(NamedTuple):
    """A model, and what its cache holds."""

    hidden: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    page: int
    context: int
    """Keys of the longest sequence."""
    experts: int
    group: int
    """Weights that share a scale."""


TINY = Size(40, 72, 4, 2, 12, 300, 3, 20, 5, 32)
ODD = Size(1003, 1531, 9, 3, 80, 50_001, 12, 777, 60, 32)
LLAMA = Size(4096, 14_336, 32, 8, 128, 128_256, 16, 4096, 64, 128)


@dataclass(frozen=True)
class Launch:
    """A launcher with its operands."""

    inputs: Tensors
    call: Callable[[Tensors], Any]
    exact: Callable[[Tensors], tuple[Any, ...]]
    """What `call` returns, then what it leaves in `writes`, from the inputs as they were before."""
    writes: tuple[str, ...] = ()
    check: Callable[[torch.Tensor, Any], None] = assert_close

    def run(self, inputs: Tensors | None = None) -> tuple[torch.Tensor, ...]:
        """Call it, on other inputs of the same shapes if they are given; return its results and what it has written."""
        given = self.inputs if inputs is None else inputs
        results = self.call(given)
        results = (results,) if isinstance(results, torch.Tensor) else results or ()
        return (*results, *(given[name] for name in self.writes))

    def verify(self) -> None:
        """Run it on clones, and compare with the formula."""
        inputs = {name: tensor.clone() for name, tensor in self.inputs.items()}
        for actual, exact in zip(self.run(inputs), self.exact(self.inputs), strict=True):
            self.check(actual, exact)


Build = Callable[[torch.device, Size, int, torch.dtype], Launch]
"""Makes a launch on a device, for a model, of so many tokens, in a dtype."""


def within(ulps: float = 4.0, slack: float = 0.0) -> Callable[[torch.Tensor, Any], None]:
    def check(actual: torch.Tensor, exact: torch.Tensor) -> None:
        assert_close(actual, exact, ulps=ulps, slack=slack)

    return check


def equal(actual: torch.Tensor, exact: torch.Tensor) -> None:
    assert torch.equal(actual.view(torch.uint8), exact.to(actual.dtype).view(torch.uint8))


def randn(device: torch.device, dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.randn(shape, device=device).to(dtype)
