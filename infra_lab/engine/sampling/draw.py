"""From logits to one drawn token a row: temperature, min-p, top-k, top-p, and the inverse of the cumulative distribution.

The filters come in vLLM's order. All of them keep the most probable token. If every row has a top-k, only that many
logits are looked at; if none has a top-k or top-p, nothing is sorted; otherwise the rows are sorted once.
"""

from collections.abc import Sequence

import torch

from infra_lab.sampling_params import SamplingParams

MAX_TOPK = 1024
"""Up to this many candidates torch.topk is much cheaper than a sort."""


def draw(logits: torch.Tensor, params: Sequence[SamplingParams], uniforms: Sequence[float]) -> torch.Tensor:
    """Draw one token id a row, [R] int64, from float32 logits [R, V]; uniforms are in [0, 1), one a row.

    Rows are independent: what is drawn for one does not depend on which others are in the batch. Between equal logits at
    the border of top-k, torch.topk decides.
    """
    device, vocab_size = logits.device, logits.shape[1]

    def column(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, device=device, dtype=torch.float32).unsqueeze(1)

    # Subtracting the maximum first keeps tiny temperatures from overflowing.
    logits = (logits - logits.amax(dim=1, keepdim=True)) / column([max(p.temperature, 1e-6) for p in params])
    order: torch.Tensor | None = None
    if any(p.top_k or p.top_p < 1.0 for p in params):
        ks = [min(p.top_k or vocab_size, vocab_size) for p in params]
        widest = max(ks)
        if widest <= MAX_TOPK:
            logits, order = logits.topk(widest, dim=1)  # [R, C], best first
        else:
            logits, order = logits.sort(dim=1, descending=True, stable=True)
        if min(ks) < logits.shape[1]:
            rank = torch.arange(logits.shape[1], device=device)
            logits = logits.masked_fill(rank >= torch.tensor(ks, device=device).unsqueeze(1), float("-inf"))
    if any(p.min_p > 0.0 for p in params):
        # The maximum is 0 by now, so that the ratio to it is exp(logit).
        logits = logits.masked_fill(logits < column([p.min_p for p in params]).log(), float("-inf"))
    weights = logits.double().exp()  # [R, C], relative probabilities
    if any(p.top_p < 1.0 for p in params):
        before = weights.cumsum(dim=1) - weights
        limit = column([p.top_p for p in params]).double() * weights.sum(dim=1, keepdim=True)
        outside = (before >= limit) & (column([p.top_p for p in params]) < 1.0)
        outside[:, 0] = False
        weights = weights.masked_fill(outside, 0.0)
    drawn = _invert(weights, torch.tensor(uniforms, device=device, dtype=torch.float64))
    return drawn if order is None else order.gather(1, drawn.unsqueeze(1)).squeeze(1)


def _invert(weights: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Return the first index whose cumulative weight exceeds uniform · total: never one of weight zero."""
    cumulative = weights.cumsum(dim=1)  # [R, C] float64
    total = cumulative[:, -1]
    # Rounding may lift the product to the total, beyond which there is no index.
    target = torch.minimum(uniforms * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target.unsqueeze(1), right=True).squeeze(1)
