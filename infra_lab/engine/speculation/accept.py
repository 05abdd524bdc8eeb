"""Which proposals are kept: rejection sampling, after which the text has the model's own distribution (Leviathan 2023,
Chen 2023).

With p what the model expects at a place and q what the proposal x was drawn from:

    keep x with probability min(1, p(x) / q(x));  else draw from the residual, max(p - q, 0), normalised, and stop.
    All kept: draw one more from what the model expects after them. It was computed anyway.

Why it is exact: x comes out by being kept with probability q(x) · min(1, p(x) / q(x)) = min(p(x), q(x)); by the residual
with the probability of a rejection, 1 - Σ min(p, q), times max(p(x) - q(x), 0) over the same sum. Together p(x).
Two conditions: q is what x was really drawn from, and the residual is drawn from, not maximised.
"""

from collections.abc import Callable

import torch

from infra_lab.engine.sampling.draw import distributions, draw_from
from infra_lab.engine.sampling.uniform import uniform
from infra_lab.engine.speculation.proposal import Proposal
from infra_lab.scheduler.plan import Speculated
from infra_lab.scheduler.request import Request

Numbers = Callable[[int], float]
"""The uniform number in [0, 1) for the i-th place after a request's tokens."""

DRAFT, ACCEPT, RESIDUAL = (number * 0x9E3779B97F4A7C15 for number in (1, 2, 3))
"""A request's seed plus one of these is the seed of another stream; the sampler's own draws the token after all."""


def stream(request: Request, purpose: int = 0) -> Numbers:
    """Return one of a request's streams of random numbers; what a place gets depends on nothing else (see `uniform`)."""
    first = request.num_output_tokens
    return lambda i: uniform(request.seed + purpose, request.sample_index, first + i)


def accept(
    p: torch.Tensor, proposal: Proposal, *, accepting: Numbers, residual: Numbers, bonus: Numbers
) -> tuple[Speculated, int]:
    """Decide on a proposal of k tokens; return what was kept and the token that follows.

    p: [k + 1, V] float64, what the model expects at each place and after all, filters and temperature applied, as
    `distributions` returns it.
    """
    token_ids, q = proposal.token_ids, proposal.probs
    for i, token_id in enumerate(token_ids):
        drawn_with = 1.0 if q is None else q[i, token_id].item()
        if accepting(i) * drawn_with < p[i, token_id].item():
            continue
        return Speculated(token_ids, i), draw_from(_residual(p[i], None if q is None else q[i], token_id), residual(i))
    return Speculated(token_ids, len(token_ids)), draw_from(p[-1], bonus(len(token_ids)))


def accept_greedy(best: list[int], proposal: Proposal) -> tuple[Speculated, int]:
    """The same at temperature 0, where p is all on one token: `best`, k + 1 of them."""
    token_ids = proposal.token_ids
    num_kept = next((i for i, token_id in enumerate(token_ids) if token_id != best[i]), len(token_ids))
    return Speculated(token_ids, num_kept), best[num_kept]


def check(logits: torch.Tensor, request: Request, proposal: Proposal) -> tuple[Speculated, int] | None:
    """Decide on a request's proposal of k tokens by logits [k + 1, V]; None if one of the rows has no finite maximum."""
    largest, best = logits.max(dim=1)
    if not largest.isfinite().all():
        return None
    if request.params.is_greedy:
        return accept_greedy(best.tolist(), proposal)
    numbers = [stream(request, purpose) for purpose in (ACCEPT, RESIDUAL, 0)]
    p = distributions(logits, request.params)
    return accept(p, proposal, accepting=numbers[0], residual=numbers[1], bonus=numbers[2])


def _residual(p: torch.Tensor, q: torch.Tensor | None, token_id: int) -> torch.Tensor:
    """What the model expects beyond what the proposer gave, [V], not normalised."""
    if q is None:
        rest = p.clone()
        rest[token_id] = 0.0
        return rest
    rest = (p - q).clamp_(min=0.0)
    return rest if rest.any() else p  # equal but for rounding
