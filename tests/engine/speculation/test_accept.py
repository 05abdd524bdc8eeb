"""What comes out of accepting and rejecting has the model's distribution, exactly; each plausible mistake shows."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import product

import pytest
import torch

from infra_lab.engine.sampling.draw import draw_from
from infra_lab.engine.sampling.uniform import uniform
from infra_lab.engine.speculation.accept import ACCEPT, DRAFT, RESIDUAL, accept, accept_greedy
from infra_lab.engine.speculation.proposal import Proposal
from infra_lab.scheduler.plan import Speculated

VOCAB_SIZE, LENGTH = 4, 3
Rule = Callable[..., tuple[Speculated, int]]


def chain(seed: int, sharpness: float) -> dict[tuple[int, ...], torch.Tensor]:
    """Return what a little model expects after each text of fewer than LENGTH + 1 tokens, [V] float64."""
    generator = torch.Generator().manual_seed(seed)
    texts = [text for length in range(LENGTH + 1) for text in product(range(VOCAB_SIZE), repeat=length)]
    logits = torch.randn(len(texts), VOCAB_SIZE, generator=generator, dtype=torch.float64) * sharpness
    return dict(zip(texts, torch.softmax(logits, dim=1), strict=True))


TARGET, DRAFT_MODEL = chain(1, 1.0), chain(2, 1.2)


def flat(probs: torch.Tensor) -> torch.Tensor:
    """The same logits at twice the temperature."""
    weights = probs.sqrt()
    return weights / weights.sum()


def place_number(seed: int, first: int, place: int) -> float:
    return uniform(seed, 0, first + place)


def speculate(seed: int, num_drafts: int, rule: Rule, *, is_sure: bool, scored_at: str = "its own") -> tuple[int, ...]:
    """Write LENGTH tokens: in each round propose, decide, and go on from what is left."""
    text: tuple[int, ...] = ()
    while len(text) < LENGTH:
        first = len(text)

        def numbers(purpose: int, first: int = first) -> Callable[[int], float]:
            return partial(place_number, seed + purpose, first)

        proposed: list[int] = []
        rows: list[torch.Tensor] = []
        for place in range(min(num_drafts, LENGTH - 1 - first)):
            q = DRAFT_MODEL[(*text, *proposed)]
            proposed.append(int(q.argmax()) if is_sure else draw_from(q, numbers(DRAFT)(place)))
            rows.append(q if scored_at == "its own" else flat(q))
        p = torch.stack([TARGET[(*text, *proposed[:i])] for i in range(len(proposed) + 1)])
        proposal = Proposal(proposed, torch.stack(rows) if rows and not is_sure else None)
        speculated, last = rule(p, proposal, accepting=numbers(ACCEPT), residual=numbers(RESIDUAL), bonus=numbers(0))
        text = (*text, *speculated.proposed[: speculated.num_accepted], last)
    return text


def chi_squared(rule: Rule, num_draws: int, *, is_sure: bool = False, scored_at: str = "its own") -> float:
    """Return the statistic of so many texts over all possible ones: 63 degrees of freedom."""
    counts = Counter(speculate(seed, 2, rule, is_sure=is_sure, scored_at=scored_at) for seed in range(num_draws))
    statistic = 0.0
    for text in product(range(VOCAB_SIZE), repeat=LENGTH):
        expected = float(num_draws)
        for i, token_id in enumerate(text):
            expected *= TARGET[text[:i]][token_id].item()
        statistic += (counts[text] - expected) ** 2 / expected
    return statistic


LIMIT = 124.0
"""Of a chi-squared variable with 63 degrees of freedom, exceeded with a probability of 1e-6 (Wilson and Hilferty)."""


@pytest.mark.parametrize("is_sure", [False, True])
def test_the_distribution_is_that_of_plain_sampling(is_sure: bool) -> None:
    assert chi_squared(accept, 20_000, is_sure=is_sure) < LIMIT


def takes_the_likeliest_of_the_residual(p: torch.Tensor, proposal: Proposal, **numbers: Callable[[int], float]):  # type: ignore[no-untyped-def]
    numbers["residual"] = lambda _: 0.999999
    return accept(p, proposal, **numbers)


def draws_from_the_model_after_a_rejection(p: torch.Tensor, proposal: Proposal, **numbers: Callable[[int], float]):  # type: ignore[no-untyped-def]
    speculated, last = accept(p, proposal, **numbers)
    if speculated.num_accepted < len(proposal.token_ids):
        last = draw_from(p[speculated.num_accepted], numbers["residual"](speculated.num_accepted))
    return speculated, last


def keeps_what_is_likely_enough(p: torch.Tensor, proposal: Proposal, **numbers: Callable[[int], float]):  # type: ignore[no-untyped-def]
    numbers["accepting"] = lambda _: 0.3
    return accept(p, proposal, **numbers)


def one_number_for_everything(p: torch.Tensor, proposal: Proposal, **numbers: Callable[[int], float]):  # type: ignore[no-untyped-def]
    numbers["residual"] = numbers["accepting"]
    return accept(p, proposal, **numbers)


@pytest.mark.parametrize(
    "rule",
    [
        takes_the_likeliest_of_the_residual,
        draws_from_the_model_after_a_rejection,
        keeps_what_is_likely_enough,
        one_number_for_everything,
    ],
)
def test_a_wrong_rule_shows(rule: Rule) -> None:
    assert chi_squared(rule, 4000) > LIMIT


def test_a_draft_scored_at_another_temperature_shows() -> None:
    assert chi_squared(accept, 4000, scored_at="another") > LIMIT


def test_greedy_keeps_what_the_model_would_have_said() -> None:
    assert accept_greedy([5, 6, 7], Proposal([5, 6])) == (Speculated([5, 6], 2), 7)
    assert accept_greedy([5, 6, 7], Proposal([5, 7])) == (Speculated([5, 7], 1), 6)
    assert accept_greedy([5, 6, 7], Proposal([6, 6])) == (Speculated([6, 6], 0), 5)


def test_a_draft_that_is_the_model_is_always_kept() -> None:
    p = torch.stack([TARGET[()], TARGET[(1,)], TARGET[(1, 2)]])
    for seed in range(200):
        numbers = {name: (lambda i, s=seed: uniform(s, 0, i)) for name in ("accepting", "residual", "bonus")}
        speculated, _ = accept(p, Proposal([1, 2], p[:2]), **numbers)
        assert speculated.num_accepted == 2


def test_nothing_of_probability_zero_comes_out() -> None:
    p = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    q = torch.tensor([[0.0, 0.2, 0.8]], dtype=torch.float64)
    for seed in range(300):
        numbers = {
            name: (lambda i, s=seed, k=k: uniform(s + k, 0, i))
            for k, name in enumerate(("accepting", "residual", "bonus"))
        }
        speculated, last = accept(p, Proposal([2], q), **numbers)
        assert (speculated.num_accepted, last in (0, 1)) == (0, True)
