"""A tensor as rows, [R, W], for the kernels that work on the last dimension and do not care what is before it."""

import torch


def as_rows(x: torch.Tensor) -> torch.Tensor:
    """View x [..., W] as [R, W] with its columns next to each other, copying it only if there is no such view."""
    num_columns = x.shape[-1]
    rows = x.reshape(x.numel() // num_columns if num_columns else 0, num_columns)
    return rows if rows.stride(-1) == 1 else rows.contiguous()
