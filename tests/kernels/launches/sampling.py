"""Sampling, up to what rounding may settle either way."""

import math
from typing import Any

import torch

from kernels import sampling
from tests.kernels.launches.launch import Launch, Size, Tensors, randn


def _sampling(device: torch.device, size: Size, tokens: int, dtype: torch.dtype) -> Tensors:
    """Rows of all kinds: greedy, flat and steep, with each of the limits, all and none of them."""
    rows = min(tokens, 256)
    kind = torch.arange(rows, device=device)
    inputs = {"logits": randn(device, dtype, rows, size.vocabulary) * 3}
    inputs["temperature"] = (kind % 5).float() / 2
    inputs["top_k"] = ((kind % 3) * 20).int()
    inputs["top_p"] = torch.where(kind % 4 < 2, 1.0, 0.8)
    inputs["min_p"] = torch.where(kind % 7 < 4, 0.0, 0.02)
    return inputs


def _kept(i: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
    """Which tokens must be kept and which may, rounding settling what lies on an edge."""
    logits, order = i["logits"].double().sort(dim=-1, descending=True, stable=True)
    ratios = ((logits - logits[:, :1]) / i["temperature"].double().clamp(min=1e-6)[:, None]).exp()
    rank = torch.arange(logits.shape[1], device=logits.device)
    last = torch.where(i["temperature"] <= 0, 1, torch.where(i["top_k"] > 0, i["top_k"], logits.shape[1]))
    masks = []
    for edge in (-1e-5, 1e-5):
        keeps = (rank < last[:, None]) & (ratios >= i["min_p"].double()[:, None] * (1 - edge))
        weights = ratios.where(keeps, 0.0)
        share = (weights.cumsum(-1) - weights) / weights.sum(-1, keepdim=True)
        keeps &= (share < i["top_p"].double()[:, None] + edge) | (i["top_p"] >= 1)[:, None]
        masks.append(torch.zeros_like(keeps).scatter(1, order, keeps))
    return masks[0], masks[1]


def filtered(device: torch.device, size: Size, tokens: int, dtype: torch.dtype) -> Launch:
    def check(actual: torch.Tensor, exact: Any) -> None:
        logits, must, may = exact
        kept = actual > -math.inf
        assert torch.equal(actual[kept], logits[kept])
        assert not (must & ~kept).any()
        assert not (kept & ~may).any()

    return Launch(
        _sampling(device, size, tokens, dtype),
        lambda i: sampling.filter_logits(i["logits"], i["temperature"], i["top_k"], i["top_p"], i["min_p"]),
        lambda i: ((i["logits"], *_kept(i)),),
        check=check,
    )


def sampled(device: torch.device, size: Size, tokens: int, dtype: torch.dtype) -> Launch:
    inputs = _sampling(device, size, tokens, dtype)
    inputs["seeds"] = torch.randint(0, 1 << 40, inputs["top_k"].shape, device=device)
    inputs["steps"] = torch.arange(len(inputs["seeds"]), device=device)

    def check(drawn: torch.Tensor, may: torch.Tensor) -> None:
        assert may.gather(1, drawn[:, None]).all()

    return Launch(inputs, lambda i: sampling.sample(*i.values()), lambda i: (_kept(i)[1],), check=check)
