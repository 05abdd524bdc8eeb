"""Acceptance against speculative decoding itself, thrown with dice."""

import pytest
import torch

from infra_lab.compression.acceptance import Acceptance, acceptance_of, measure_acceptance
from infra_lab.compression.trainable import load_trainable
from infra_lab.errors import ConfigError
from tests.compression.models import TEXT, tiny


def test_the_rate_is_how_often_the_rejection_rule_keeps_a_proposal() -> None:
    generator = torch.Generator().manual_seed(0)
    target, draft = (torch.randn(3, 4, 6, generator=generator) * 1.5 for _ in range(2))
    found = acceptance_of(target, draft, temperature=0.7)
    p, q = (target / 0.7).softmax(-1).view(-1, 6), (draft / 0.7).softmax(-1).view(-1, 6)
    throws = 20_000
    proposals = torch.multinomial(q, throws, replacement=True, generator=generator)  # [positions, throws]
    ratio = p.gather(1, proposals) / q.gather(1, proposals)
    kept = (torch.rand(ratio.shape, generator=generator) < ratio).double().mean()
    assert found.rate == pytest.approx(float(kept), abs=0.005)
    assert found.greedy_agreement == pytest.approx(float((p.argmax(1) == q.argmax(1)).double().mean()))
    assert found.num_positions == 12


def test_tokens_per_step_against_dice() -> None:
    generator = torch.Generator().manual_seed(1)
    alpha, gamma = 0.8, 4
    kept = torch.rand(100_000, gamma, generator=generator) < alpha
    tokens = kept.long().cumprod(dim=1).sum(dim=1) + 1  # and one of the target's own
    acceptance = Acceptance(rate=alpha, greedy_agreement=0.5, num_positions=1)
    assert acceptance.tokens_per_step(gamma) == pytest.approx(float(tokens.double().mean()), rel=0.01)
    assert acceptance.tokens_per_step(gamma) == pytest.approx((1 - alpha ** (gamma + 1)) / (1 - alpha))
    assert acceptance.tokens_per_step(2, greedy=True) == 1.75
    assert acceptance.speedup(gamma, 0.05) == pytest.approx(3.3616 / 1.2)
    assert acceptance.speedup(0, 0.05) == 1
    assert Acceptance(1.0, 1.0, 1).tokens_per_step(5) == 6


def test_where_hard_tokens_cluster_a_step_brings_less() -> None:
    """Half a text of which all is kept, and half of which 60 %: played through, against the rule at their mean of 80 %."""
    generator = torch.Generator().manual_seed(2)
    kept = torch.rand(2, 50_000, generator=generator) < torch.tensor([[1.0], [0.6]])
    text, at, steps = kept.flatten().tolist(), 0, 0
    while at < len(text) - 4:
        ahead = text[at : at + 4]
        at, steps = at + (ahead.index(False) if False in ahead else 4) + 1, steps + 1
    rule = Acceptance(rate=0.8, greedy_agreement=0.8, num_positions=1)
    assert at / steps == pytest.approx(2 / (1 / 5 + 1 / Acceptance(0.6, 0.6, 1).tokens_per_step(4)), rel=0.01)
    assert at / steps < 0.95 * rule.tokens_per_step(4)


def test_a_model_accepts_itself_and_a_spoilt_one_less() -> None:
    model = tiny()
    same = measure_acceptance(model, tiny(), TEXT)
    assert same.rate == pytest.approx(1, abs=1e-9)
    assert same.greedy_agreement == 1
    assert same.num_positions == TEXT.numel()
    spoilt = load_trainable("tiny")
    with torch.no_grad():
        spoilt.layers[2].mlp.down_proj.weight.zero_()
        expected = acceptance_of(model(TEXT).logits, spoilt(TEXT).logits)
    found = measure_acceptance(model, spoilt, TEXT)
    assert found.rate == pytest.approx(expected.rate, rel=1e-6)
    assert 0.1 < found.rate < 0.98


def test_what_cannot_be_compared() -> None:
    logits = torch.zeros(2, 5)
    with pytest.raises(ConfigError, match="share a vocabulary"):
        acceptance_of(logits, torch.zeros(2, 6))
    with pytest.raises(ConfigError, match=r"temperature is 0\.0"):
        acceptance_of(logits, logits, temperature=0.0)
    with pytest.raises(ConfigError, match="no positions"):
        acceptance_of(logits[:0], logits[:0])
    with pytest.raises(ConfigError, match="gamma is -1"):
        Acceptance(0.5, 0.5, 1).tokens_per_step(-1)
    with pytest.raises(ConfigError, match="cost_ratio is -1"):
        Acceptance(0.5, 0.5, 1).speedup(1, -1)
