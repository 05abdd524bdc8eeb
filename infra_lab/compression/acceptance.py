"""How good a student is as a draft: the share of its proposals that speculative decoding would keep (Leviathan 2023).

A token x drawn from the draft's q is kept with probability min(1, p(x) / q(x)) where p is the target's distribution: over all
x that is Σ min(p, q), whatever the two are. Measured here on given contexts in one pass each. A text that the target wrote
itself is what a draft meets in service; a book's is an approximation.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from infra_lab.compression.trainable import TrainableLM
from infra_lab.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Acceptance:
    """A draft beside its target."""

    rate: float
    """Mean of Σ min(p, q) over positions: the probability that a sampled proposal is kept."""
    greedy_agreement: float
    """Share of positions where both have the same favourite: what is kept at temperature 0."""
    num_positions: int

    def tokens_per_step(self, gamma: int, *, greedy: bool = False) -> float:
        """Expected tokens of one target step over γ proposals: 1 + α + … + α^γ = (1 - α^(γ+1)) / (1 - α).

        Taking all positions for equally hard. Where hard ones cluster it is less: each still costs a step, and long runs of
        easy ones are cut off after γ. Only as γ grows does the difference vanish.
        Raises ConfigError for γ below 0.
        """
        if gamma < 0:
            raise ConfigError(f"gamma is {gamma}; it is a number of proposals, at least 0")
        alpha = self.greedy_agreement if greedy else self.rate
        return sum(alpha**i for i in range(gamma + 1))

    def speedup(self, gamma: int, cost_ratio: float, *, greedy: bool = False) -> float:
        """Tokens a unit of time against decoding without a draft, whose step takes `cost_ratio` of a target's step.

        It takes a step over γ + 1 tokens to cost what a step over one does: decoding that waits for weights.
        """
        if cost_ratio < 0:
            raise ConfigError(f"cost_ratio is {cost_ratio}; it is the draft's step time over the target's")
        return self.tokens_per_step(gamma, greedy=greedy) / (gamma * cost_ratio + 1)


def acceptance_of(target: torch.Tensor, draft: torch.Tensor, *, temperature: float = 1.0) -> Acceptance:
    """Compare logits of the same positions, [..., V] each; both are sampled from at `temperature`.

    Raises ConfigError for another vocabulary, for no positions and for a temperature that is not positive.
    """
    return _pooled([_of(target, draft, temperature)])


@torch.no_grad()
def measure_acceptance(
    target: TrainableLM, draft: TrainableLM, token_ids: torch.Tensor, *, temperature: float = 1.0
) -> Acceptance:
    """Run both over texts [N, T], one at a time, and compare what they expect after each token."""
    return _pooled(_of(target(text).logits, draft(text).logits, temperature) for text in torch.split(token_ids, 1))


_Sums = tuple[float, int, int]
"""Σ of Σ min(p, q), positions that agree, positions."""


def _of(target: torch.Tensor, draft: torch.Tensor, temperature: float) -> _Sums:
    if target.shape != draft.shape:
        raise ConfigError(
            f"logits of {list(target.shape)} and {list(draft.shape)}; target and draft share a vocabulary"
        )
    if not temperature > 0:
        raise ConfigError(f"temperature is {temperature}; for greedy decoding read greedy_agreement")
    p, q = ((logits.double() / temperature).softmax(dim=-1) for logits in (target, draft))
    kept = torch.minimum(p, q).sum(dim=-1)
    agree = target.argmax(dim=-1) == draft.argmax(dim=-1)
    return float(kept.sum()), int(agree.sum()), agree.numel()


def _pooled(parts: "list[_Sums] | Iterator[_Sums]") -> Acceptance:
    kept, agree, count = (sum(column) for column in zip(*parts, strict=True))
    if not count:
        raise ConfigError("no positions to compare; give texts of at least one token")
    return Acceptance(min(float(kept) / count, 1.0), float(agree) / count, int(count))
