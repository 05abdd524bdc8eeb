"""Inputs that lie in memory as an engine's do: rows with a gap between them."""

import torch

from tests.kernels.conftest import DEVICE


def spread_rows(shape: tuple[int, int], dtype: torch.dtype, scale: float, gap: int, seed: int) -> torch.Tensor:
    """Random rows that lie `gap` elements apart, NaN between them."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale
    wide = torch.full((shape[0], shape[1] + gap), float("nan"), dtype=dtype)
    wide[:, : shape[1]] = values.to(dtype)
    return wide.to(DEVICE)[:, : shape[1]]
