"""From logits to one drawn token a row: temperature, top-k, min-p, top-p, and the inverse of the cumulative distribution.

The filters come in vLLM's order, equals rank by lowest id, and all of them keep the most probable token. What is left is
summed up in the order of the ids. Nothing of this depends on a row's neighbours, and it is what the sampling kernel does
too: the same uniform gives the same token in any batch and on any device, but for the last bit of an exponential.

Rows are handled in groups of the same needs: those with a top-k look at that many candidates, and only those with a top-p
are sorted.
"""

from collections import defaultdict
from collections.abc import Sequence

import torch

from infra_lab.sampling_params import SamplingParams

LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 1e-6, 1e30
"""Beyond these nothing changes any more, but a float32 would become 0 or infinite."""


def draw(logits: torch.Tensor, params: Sequence[SamplingParams], uniforms: Sequence[float]) -> torch.Tensor:
    """Draw one token id a row, [R] int64, from float32 logits [R, V]; uniforms are in [0, 1), one a row."""
    groups: dict[tuple[int, bool], list[int]] = defaultdict(list)
    for row, row_params in enumerate(params):
        num_candidates = row_params.top_k if row_params.top_k < logits.shape[1] else 0
        groups[num_candidates, row_params.top_p < 1.0].append(row)
    numbers = torch.tensor(uniforms, device=logits.device, dtype=torch.float64)
    if len(groups) == 1:
        return _draw_group(logits, params, numbers, next(iter(groups))[0])
    drawn = torch.empty(len(params), dtype=torch.int64, device=logits.device)
    for (num_candidates, _), rows in groups.items():
        index = torch.tensor(rows, device=logits.device)
        drawn[index] = _draw_group(logits[index], [params[row] for row in rows], numbers[index], num_candidates)
    return drawn


def distributions(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """Return what one request's tokens are drawn from, [R, V] float64, given logits [R, V] of several places in its text.

    It is what `draw` draws from: filtered, at the request's temperature; at temperature 0 all on the most probable token.
    """
    if params.is_greedy:
        probs = torch.zeros_like(logits, dtype=torch.float64)
        return probs.scatter_(1, logits.argmax(dim=1, keepdim=True), 1.0)
    num_candidates = params.top_k if params.top_k < logits.shape[1] else 0
    weights, candidates = _weights(logits.float(), [params] * len(logits), num_candidates)
    weights = weights.double()
    probs = weights / weights.sum(dim=1, keepdim=True)
    return probs if candidates is None else torch.zeros_like(logits, dtype=torch.float64).scatter_(1, candidates, probs)


def bounded_temperature(params: SamplingParams) -> float:
    """Return the temperature of a row that draws, as far as it makes a difference."""
    return min(max(params.temperature, LOWEST_TEMPERATURE), HIGHEST_TEMPERATURE)


def _draw_group(
    logits: torch.Tensor, params: Sequence[SamplingParams], uniforms: torch.Tensor, num_candidates: int
) -> torch.Tensor:
    """Draw for rows that all look at so many candidates, 0 for all tokens."""
    weights, candidates = _weights(logits, params, num_candidates)
    drawn = _invert(weights, uniforms)
    return drawn if candidates is None else candidates.gather(1, drawn.unsqueeze(1)).squeeze(1)


def _weights(
    logits: torch.Tensor, params: Sequence[SamplingParams], num_candidates: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return each row's relative probabilities [R, C] and the tokens that they belong to, [R, C] or, for all, None."""

    def column(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, device=logits.device, dtype=torch.float32).unsqueeze(1)

    candidates: torch.Tensor | None = None
    if num_candidates:
        candidates = _most_probable(logits, num_candidates)  # [R, C]
        logits = logits.gather(1, candidates)
    # The most probable logit becomes 0, so that no temperature overflows, and exp(logit) is the ratio to it.
    temperatures = column([bounded_temperature(p) for p in params])
    weights = ((logits - logits.amax(dim=1, keepdim=True)) / temperatures).exp_()  # [R, C], relative probabilities
    if any(p.min_p > 0.0 for p in params):
        weights.masked_fill_(weights < column([p.min_p for p in params]), 0.0)
    if any(p.top_p < 1.0 for p in params):
        weights = _nucleus(logits, weights, column([p.top_p for p in params]).double())
    return weights, candidates


def _most_probable(logits: torch.Tensor, count: int) -> torch.Tensor:
    """Return the ids of the `count` < V largest logits of each row, [R, count], in ascending order.

    torch.topk says nothing of which equals it takes at the border, and bfloat16 logits often tie: those are put right.
    """
    values, ids = logits.topk(count + 1, dim=1)  # best first, and the one beyond the border
    ids, borders = ids[:, :count], values[:, count - 1]
    for row in (values[:, count] == borders).nonzero().flatten().tolist():
        num_above = int((values[row] > borders[row]).sum())
        ids[row, num_above:] = (logits[row] == borders[row]).nonzero().flatten()[: count - num_above]
    return ids.sort(dim=1).values


def _nucleus(logits: torch.Tensor, weights: torch.Tensor, limits: torch.Tensor) -> torch.Tensor:
    """Return weights [R, C] without those beyond each row's top-p, limits [R, 1] float64."""
    order = logits.sort(dim=1, descending=True, stable=True).indices
    ranked = weights.gather(1, order)
    cumulative = ranked.cumsum(dim=1, dtype=torch.float64)
    outside = (cumulative - ranked >= limits * cumulative[:, -1:]) & (limits < 1.0)
    outside[:, 0] = False
    return weights.scatter(1, order, ranked.masked_fill_(outside, 0.0))


def _invert(weights: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Return the first index whose cumulative weight exceeds uniform · total: never one of weight zero."""
    cumulative = weights.cumsum(dim=1, dtype=torch.float64)  # [R, C]
    total = cumulative[:, -1]
    # Rounding may lift the product to the total, beyond which there is no index.
    target = torch.minimum(uniforms * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target.unsqueeze(1), right=True).squeeze(1)


def draw_from(weights: torch.Tensor, number: float) -> int:
    """Draw one token from weights [V], which need not sum to one, by a uniform number in [0, 1)."""
    return int(_invert(weights.unsqueeze(0), torch.tensor([number], dtype=torch.float64, device=weights.device)))
