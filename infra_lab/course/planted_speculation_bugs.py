"""Four ways in which speculative decoding goes wrong, planted on purpose: section 3.2 has the learner find them.

A   proposals are scored at temperature 1, whatever temperature they were drawn at
B   after a rejection comes the most probable token of the residual, not one drawn from it
C   a proposal that is rejected is kept all the same
D   where all proposals are kept, the token after them is dropped

With each of them every request ends, at its length, and reads like the model. Two leave greedy texts as they are, and one
changes nothing but how many steps it takes.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from infra_lab.engine import torch_executor
from infra_lab.engine.speculation import accept as rule
from infra_lab.engine.speculation.accept import Numbers
from infra_lab.engine.speculation.proposal import Proposal
from infra_lab.errors import ConfigError
from infra_lab.scheduler.plan import Speculated
from infra_lab.scheduler.request import Request

_check, _accept, _accept_greedy, _residual = rule.check, rule.accept, rule.accept_greedy, rule._residual


def _scored_at_one(logits: torch.Tensor, request: Request, proposal: Proposal) -> tuple[Speculated, int] | None:
    if proposal.probs is not None:
        weights = proposal.probs**request.params.temperature
        proposal = Proposal(proposal.token_ids, weights / weights.sum(dim=1, keepdim=True))
    return _check(logits, request, proposal)


def _most_probable(p: torch.Tensor, q: torch.Tensor | None, token_id: int) -> torch.Tensor:
    rest = _residual(p, q, token_id)
    return torch.zeros_like(rest).index_fill_(0, rest.argmax(), 1.0)


def _one_too_many(outcome: tuple[Speculated, int]) -> tuple[Speculated, int]:
    (token_ids, num_kept), last = outcome
    return Speculated(token_ids, min(num_kept + 1, len(token_ids))), last


def _keeps_the_rejected(p: torch.Tensor, proposal: Proposal, **numbers: Numbers) -> tuple[Speculated, int]:
    return _one_too_many(_accept(p, proposal, **numbers))


def _keeps_the_rejected_greedy(best: list[int], proposal: Proposal) -> tuple[Speculated, int]:
    return _one_too_many(_accept_greedy(best, proposal))


def _without_bonus(outcome: tuple[Speculated, int]) -> tuple[Speculated, int]:
    (token_ids, num_kept), last = outcome
    if num_kept < len(token_ids):
        return Speculated(token_ids, num_kept), last
    return Speculated(token_ids, num_kept - 1), token_ids[-1]


def _drops_the_bonus(p: torch.Tensor, proposal: Proposal, **numbers: Numbers) -> tuple[Speculated, int]:
    return _without_bonus(_accept(p, proposal, **numbers))


def _drops_the_bonus_greedy(best: list[int], proposal: Proposal) -> tuple[Speculated, int]:
    return _without_bonus(_accept_greedy(best, proposal))


SPECULATION_BUGS: dict[str, dict[tuple[Any, str], Callable[..., Any]]] = {
    "none": {},
    "A": {(rule, "check"): _scored_at_one, (torch_executor, "check"): _scored_at_one},
    "B": {(rule, "_residual"): _most_probable},
    "C": {(rule, "accept"): _keeps_the_rejected, (rule, "accept_greedy"): _keeps_the_rejected_greedy},
    "D": {(rule, "accept"): _drops_the_bonus, (rule, "accept_greedy"): _drops_the_bonus_greedy},
}
"""By name: (where, what) and what stands there instead."""


@contextmanager
def planted_speculation_bug(name: str) -> Iterator[None]:
    """Have every engine of the process speculate with one of the bugs in this block. Raises ConfigError for an unknown one."""
    if name not in SPECULATION_BUGS:
        raise ConfigError(f"there is no bug {name!r}; there are {', '.join(SPECULATION_BUGS)}")
    wrong = SPECULATION_BUGS[name]
    right = {(owner, what): getattr(owner, what) for owner, what in wrong}
    try:
        for (owner, what), planted in wrong.items():
            setattr(owner, what, planted)
        yield
    finally:
        for (owner, what), kept in right.items():
            setattr(owner, what, kept)
