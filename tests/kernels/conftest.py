"""Kernels run on the GPU where there is one, and in Triton's interpreter elsewhere (see tests/conftest.py)."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import pytest
import torch

import kernels

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def triton_mode(request: pytest.FixtureRequest) -> Iterator[None]:
    """Launch kernels, unless the test is about the references."""
    if request.module.__name__.endswith(("test_references", "test_dispatch")):
        yield
        return
    with kernels.use("triton"):
        yield


def assert_close(actual: torch.Tensor, exact: torch.Tensor, *, ulps: float = 4.0, slack: float = 0.0) -> None:
    """Compare with a float64 result: within so many units in the last place of the largest value in its row, plus `slack`."""
    assert actual.shape == exact.shape
    if not exact.numel():
        return
    assert torch.isfinite(actual).all(), "a value was left out, or overflowed"
    kind = torch.finfo(actual.dtype)
    scale = exact.double().abs().amax(dim=-1, keepdim=True).clamp(min=kind.tiny)
    error, limit = (actual.double() - exact.double()).abs(), ulps * kind.eps * scale + slack
    assert (error <= limit).all(), f"off by {error.max():.3g}, with {limit.min():.3g} to {limit.max():.3g} allowed"


@contextmanager
def poisoned() -> Iterator[None]:
    """Fill what `torch.empty` returns with NaN, so that a place that a kernel leaves out shows."""
    empty = torch.empty

    def filled(*args: object, **kwargs: object) -> torch.Tensor:
        made: torch.Tensor = empty(*args, **kwargs)  # type: ignore[call-overload]
        return made.fill_(float("nan")) if made.is_floating_point() else made.fill_(77)

    with patch.object(torch, "empty", filled):
        yield
