"""From logits to one drawn token a row: temperature, min-p, top-k, top-p, and the inverse of the cumulative distribution.

The filters come in vLLM's order, and all of them keep the most probable token. Rows are handled in groups by what they
need: those with a top-k look at that many candidates, those with a top-p alone are sorted, the rest are not. A row's group
depends on its own parameters only, and so does the order in which its distribution is summed up: the same uniform gives it
the same token whatever else is in the batch, even where bfloat16 logits tie.
"""

from collections import defaultdict
from collections.abc import Sequence

import torch

from infra_lab.sampling_params import SamplingParams

MAX_CANDIDATES = 1024
"""Up to this many candidates torch.topk is much cheaper than a sort."""
_UNSORTED, _SORTED = 0, -1


def draw(logits: torch.Tensor, params: Sequence[SamplingParams], uniforms: Sequence[float]) -> torch.Tensor:
    """Draw one token id a row, [R] int64, from float32 logits [R, V]; uniforms are in [0, 1), one a row."""
    groups: dict[int, list[int]] = defaultdict(list)
    for row, row_params in enumerate(params):
        groups[_num_candidates(row_params)].append(row)
    numbers = torch.tensor(uniforms, device=logits.device, dtype=torch.float64)
    if len(groups) == 1:
        return _draw_group(logits, params, numbers, next(iter(groups)))
    drawn = torch.empty(len(params), dtype=torch.int64, device=logits.device)
    for num_candidates, rows in groups.items():
        index = torch.tensor(rows, device=logits.device)
        drawn[index] = _draw_group(logits[index], [params[row] for row in rows], numbers[index], num_candidates)
    return drawn


def _num_candidates(params: SamplingParams) -> int:
    """How many of the most probable tokens to look at; _SORTED for all of them in order, _UNSORTED as they are."""
    if 0 < params.top_k <= MAX_CANDIDATES:
        return params.top_k
    return _SORTED if params.top_k or params.top_p < 1.0 else _UNSORTED


def _draw_group(
    logits: torch.Tensor, params: Sequence[SamplingParams], uniforms: torch.Tensor, num_candidates: int
) -> torch.Tensor:
    def column(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, device=logits.device, dtype=torch.float32).unsqueeze(1)

    order: torch.Tensor | None = None
    if num_candidates == _SORTED:
        logits, order = logits.sort(dim=1, descending=True, stable=True)
        ks = column([float(p.top_k or logits.shape[1]) for p in params])
        logits = logits.masked_fill(torch.arange(logits.shape[1], device=logits.device) >= ks, float("-inf"))
    elif num_candidates != _UNSORTED:
        logits, order = logits.topk(min(num_candidates, logits.shape[1]), dim=1)  # [R, C], best first
    # The most probable logit becomes 0, so that no temperature overflows, and exp(logit) is the ratio to it.
    temperatures = column([max(p.temperature, 1e-6) for p in params])
    weights = ((logits - logits.amax(dim=1, keepdim=True)) / temperatures).exp_()  # [R, C], relative probabilities
    if any(p.min_p > 0.0 for p in params):
        weights.masked_fill_(weights < column([p.min_p for p in params]), 0.0)
    if any(p.top_p < 1.0 for p in params):
        limits = column([p.top_p for p in params]).double()
        cumulative = weights.cumsum(dim=1, dtype=torch.float64)
        outside = (cumulative - weights >= limits * cumulative[:, -1:]) & (limits < 1.0)
        outside[:, 0] = False
        weights.masked_fill_(outside, 0.0)
    drawn = _invert(weights, uniforms)
    return drawn if order is None else order.gather(1, drawn.unsqueeze(1)).squeeze(1)


def _invert(weights: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Return the first index whose cumulative weight exceeds uniform · total: never one of weight zero."""
    cumulative = weights.cumsum(dim=1, dtype=torch.float64)  # [R, C]
    total = cumulative[:, -1]
    # Rounding may lift the product to the total, beyond which there is no index.
    target = torch.minimum(uniforms * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target.unsqueeze(1), right=True).squeeze(1)
