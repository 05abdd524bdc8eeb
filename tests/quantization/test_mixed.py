"""Mixed precision: sensitivity against a model changed by hand, the choice against every other one."""

import itertools
import random

import pytest
import torch

from infra_lab.data import data_path
from infra_lab.errors import ConfigError
from infra_lab.models.calibrated import dense_layer, quantize_layers
from infra_lab.models.layer_walk import MATRICES
from infra_lab.models.sensitivity import SHRINK, int4_sensitivity, mixed_method
from infra_lab.models.transformer import CausalLM
from infra_lab.quantization import DenseLinear, LinearScheme
from infra_lab.quantization.embedding_int4 import Int4Embedding
from infra_lab.quantization.grouped import rtn
from infra_lab.quantization.linear_int4 import Int4Linear
from infra_lab.quantization.linear_w8a8 import Float8Linear
from infra_lab.quantization.mixed import Candidate, choose_int4
from infra_lab.quantization.recipes import RECIPES
from tests.models.hf_models import load_folder, logits_of

TOKENS = torch.tensor([list(b"The value of an object"), list(b"is returned. If it is ")])


def dense_tiny() -> CausalLM:
    return load_folder(data_path("tiny"), LinearScheme(RECIPES["mixed-fp8-int4"]))


def test_the_choice_is_the_best_but_for_the_last_matrix() -> None:
    rng = random.Random(0)
    for _ in range(50):
        candidates = {
            f"m{i}": Candidate(rng.uniform(0, 1), size := rng.randint(50, 100), size // 2 + rng.randint(0, 5))
            for i in range(8)
        }
        total = sum(c.fp8_bytes for c in candidates.values())
        budget = rng.randint(sum(c.int4_bytes for c in candidates.values()), total)

        def size_of(chosen: tuple[str, ...] | list[str]) -> int:
            return total - sum(candidates[n].fp8_bytes - candidates[n].int4_bytes for n in chosen)  # noqa: B023

        def cost_of(chosen: tuple[str, ...] | list[str]) -> float:
            return sum(candidates[name].cost for name in chosen)  # noqa: B023

        subsets = (s for n in range(9) for s in itertools.combinations(candidates, n))
        best = min(cost_of(subset) for subset in subsets if size_of(subset) <= budget)
        chosen = choose_int4(candidates, budget)
        assert size_of(chosen) <= budget
        assert best <= cost_of(chosen) + 1e-9
        assert cost_of(chosen[:-1]) <= best + 1e-9  # the knapsack's bound


def test_budgets_at_the_ends() -> None:
    candidates = {"a": Candidate(0.1, 100, 55), "b": Candidate(-0.01, 100, 55), "c": Candidate(0.0, 10, 12)}
    assert choose_int4(candidates, 210) == []
    assert choose_int4(candidates, 170) == ["b"]  # measured below zero is noise: as good as free
    assert choose_int4(candidates, 120) == ["b", "a"]  # c would grow
    with pytest.raises(ConfigError, match="takes 120 bytes, more than the budget of 119"):
        choose_int4(candidates, 119)


def test_sensitivity_is_the_kl_of_a_model_with_that_one_matrix_in_int4() -> None:
    model = dense_tiny()
    dense_layer(model.layers[2], "o").weight[:, ::2] = 0.5  # two values a group: on any grid exactly
    dense_layer(model.layers[2], "o").weight[:, 1::2] = -0.25
    weights = [dense_layer(layer, matrix).weight.clone() for layer in model.layers for matrix in MATRICES]
    seen: list[tuple[int, int]] = []
    found = int4_sensitivity(model, TOKENS, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i + 1, 16) for i in range(16)]
    kept = [dense_layer(layer, matrix).weight for layer in model.layers for matrix in MATRICES]
    assert all(map(torch.equal, kept, weights))  # everything is back in its place

    expected = [torch.log_softmax(logits_of(model, text.tolist()).double(), dim=-1) for text in TOKENS]
    weight = dense_layer(model.layers[1], "down").weight
    model.layers[1].down = DenseLinear(rtn(weight, 4, 128).dequantize())
    changed = [torch.log_softmax(logits_of(model, text.tolist()).double(), dim=-1) for text in TOKENS]
    kl = sum(float((p.exp() * (p - q)).sum()) for p, q in zip(expected, changed, strict=True)) / TOKENS.numel()
    # a text alone is few enough rows for the int8 head to multiply in bfloat16
    assert found["model.layers.1.down"] == pytest.approx(kl, rel=0.05)
    assert kl > 1e-4
    assert abs(found["model.layers.2.o"]) < 1e-6


def test_the_least_sensitive_matrices_are_in_int4_and_the_rest_in_fp8() -> None:
    model = dense_tiny()
    sensitivity = int4_sensitivity(model, TOKENS)
    num_weights = sum(dense_layer(layer, matrix).weight.numel() for layer in model.layers for matrix in MATRICES)
    quantize_layers(model, TOKENS, mixed_method(model, TOKENS), RECIPES["mixed-fp8-int4"])
    kinds = {
        f"model.layers.{i}.{matrix}": type(getattr(layer, matrix))
        for i, layer in enumerate(model.layers)
        for matrix in MATRICES
    }
    int4 = [name for name, kind in kinds.items() if kind is Int4Linear]
    assert set(kinds.values()) == {Int4Linear, Float8Linear}
    assert max(sensitivity, key=sensitivity.__getitem__) not in int4
    layers = model.weight_bytes - model.lm_head.weight_bytes
    assert 0.8 < layers / (2 * num_weights / SHRINK) <= 1
    with pytest.raises(ConfigError, match="INT4 in every matrix takes"):
        mixed_method(dense_tiny(), TOKENS, budget_bytes=1000)


def test_an_embedding_in_int4_reads_the_rows_that_it_multiplies_by() -> None:
    weight = torch.randn(272, 192, generator=torch.Generator().manual_seed(0))
    embedding = Int4Embedding(weight)
    indices = torch.tensor([0, 271, 5, 100, 5])
    rows = embedding.rows(indices)
    assert (rows - weight[indices]).norm() < 0.12 * weight[indices].norm()
    x = torch.randn(3, 192, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16).float()
    expected = x @ embedding.rows(torch.arange(272)).t()
    assert torch.allclose(embedding(x), expected, atol=0.01 * float(expected.abs().max()))
    model = load_folder(data_path("tiny"))
    before = logits_of(model, TOKENS[0].tolist())
    model.embedding = model.lm_head = Int4Embedding(model.embedding.rows(torch.arange(272)))
    change = (logits_of(model, TOKENS[0].tolist()) - before).norm() / before.norm()
    assert 0.005 < change < 0.3
