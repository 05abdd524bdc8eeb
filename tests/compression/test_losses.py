"""Losses against sums written out in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infra_lab.compression.losses import attention_loss, hard_loss, hidden_loss, layer_map, logit_loss, mean_of


def normal(*shape: int, seed: int = 0, size: float = 3.0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * size


def maps(*shape: int, seed: int) -> torch.Tensor:
    future = torch.ones(shape[-2:], dtype=torch.bool).triu(1)
    return normal(*shape, seed=seed).masked_fill(future, float("-inf")).softmax(dim=-1)


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


@given(seed=st.integers(0, 1000), temperature=st.floats(0.3, 8.0))
@settings(max_examples=20, deadline=None)
def test_soft_labels(seed: int, temperature: float) -> None:
    student, teacher = normal(2, 3, 7, seed=seed), normal(2, 3, 7, seed=seed + 1)
    rows = [
        kl((t / temperature).softmax(0).tolist(), (s / temperature).softmax(0).tolist())
        for s, t in zip(student.view(-1, 7), teacher.view(-1, 7), strict=True)
    ]
    found = logit_loss(student, teacher, temperature)
    assert float(found) == pytest.approx(temperature**2 * sum(rows) / 6, rel=1e-9)
    assert float(logit_loss(student, student + 5, temperature)) == pytest.approx(0, abs=1e-12)


def test_temperature_leaves_the_gradient_its_size() -> None:
    """Hinton's reason for T²: at high temperature the gradient is (student - teacher) / V, whatever T is."""
    student, teacher = normal(1, 1, 9, size=0.1).requires_grad_(), normal(1, 1, 9, seed=1, size=0.1)
    (gradient,) = torch.autograd.grad(logit_loss(student, teacher, 100.0), student)
    difference = (student - student.mean() - teacher + teacher.mean()) / 9
    assert torch.allclose(gradient, difference, rtol=1e-2, atol=1e-6)


def test_hard_labels_are_the_next_tokens() -> None:
    logits, tokens = normal(2, 4, 5), torch.tensor([[1, 4, 0, 2], [3, 3, 1, 0]])
    nll = [-math.log(logits[b, t].softmax(0)[tokens[b, t + 1]]) for b in range(2) for t in range(3)]
    assert float(hard_loss(logits, tokens)) == pytest.approx(sum(nll) / 6, rel=1e-9)


def test_hidden_states_as_a_share_of_the_teachers() -> None:
    student, teacher = normal(2, 3, 4), normal(2, 3, 4, seed=1)
    expected = sum((a - b) ** 2 for a, b in zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True))
    assert float(hidden_loss(student, teacher)) == pytest.approx(expected / float((teacher**2).sum()), rel=1e-9)
    assert float(hidden_loss(torch.zeros_like(teacher), teacher)) == 1
    assert float(hidden_loss(student * 1e3, teacher * 1e3)) == pytest.approx(float(hidden_loss(student, teacher)))


def test_attention_maps() -> None:
    student, teacher = maps(2, 3, 5, 5, seed=0), maps(2, 3, 5, 5, seed=1)
    pairs = list(zip(student.view(-1, 5).tolist(), teacher.view(-1, 5).tolist(), strict=True))
    expected = sum(kl(t, s) for s, t in pairs) / len(pairs)
    assert float(attention_loss(student, teacher)) == pytest.approx(expected, rel=1e-9)
    squares = sum((a - b) ** 2 for s, t in pairs for a, b in zip(s, t, strict=True)) / student.numel()
    assert float(attention_loss(student, teacher, "mse")) == pytest.approx(squares, rel=1e-9)
    fewer = teacher[:, :2].contiguous()
    of_means = attention_loss(fewer.mean(dim=1, keepdim=True), teacher.mean(dim=1, keepdim=True))
    assert float(attention_loss(fewer, teacher)) == pytest.approx(float(of_means), rel=1e-9)
    assert float(attention_loss(teacher, teacher)) == pytest.approx(0, abs=1e-12)
    weak = student.clone().requires_grad_()
    attention_loss(weak, teacher).backward()
    assert torch.isfinite(weak.grad).all()


def test_layer_maps() -> None:
    assert layer_map(4, 12) == (2, 5, 8, 11)  # TinyBERT-4: g(m) = 3 · m
    assert layer_map(6, 12) == (1, 3, 5, 7, 9, 11)
    assert layer_map(3, 4) == (1, 2, 3)
    assert layer_map(4, 4) == (0, 1, 2, 3)
    assert layer_map(3, 2) == (0, 1, 1)
    assert float(mean_of([torch.tensor(1.0), torch.tensor(4.0)])) == 2.5
