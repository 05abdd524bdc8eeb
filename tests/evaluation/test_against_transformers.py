"""Perplexity, KL and choices against transformers on the same windows."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers

from infra_lab import LLM
from infra_lab.data import data_path
from infra_lab.errors import ConfigError
from infra_lab.evaluation import (
    ChoiceResult,
    Question,
    ReferenceRun,
    answer_questions,
    evaluation_tokens,
    make_questions,
    perplexity,
)
from infra_lab.evaluation.multiple_choice import option_log_likelihoods
from infra_lab.evaluation.windows import sliding_windows
from infra_lab.models.fetch import resolve_model
from tests.models.hf_models import random_model

WINDOW, STRIDE = 96, 40


@pytest.fixture(scope="module")
def theirs() -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(data_path("tiny"), dtype=torch.float32).eval()


def engine(quantization: str | None = None, **settings: Any) -> LLM:
    return LLM("tiny", dtype="float32", device="cpu", num_kv_blocks=64, quantization=quantization, **settings)


@pytest.fixture(scope="module")
def llm() -> LLM:
    return engine()


@pytest.fixture(scope="module")
def text(llm: LLM) -> list[int]:
    return evaluation_tokens(llm.encode, 300)


@torch.no_grad()
def their_rows(model: Any, token_ids: list[int]) -> torch.Tensor:
    """log p of every token after each, [T, V] float64."""
    return torch.log_softmax(model(torch.tensor([token_ids])).logits[0].double(), dim=-1)


def scored_rows(model: Any, token_ids: list[int]) -> Iterator[tuple[torch.Tensor, list[int]]]:
    for begin, first, end in sliding_windows(len(token_ids), WINDOW, STRIDE):
        yield their_rows(model, token_ids[begin:end])[first - 1 - begin : -1], token_ids[first:end]


def test_perplexity_in_sliding_windows(theirs: Any, llm: LLM, text: list[int]) -> None:
    nll = torch.cat([-rows[range(len(targets)), targets] for rows, targets in scored_rows(theirs, text)])
    seen: list[tuple[int, int]] = []
    found = perplexity(llm, text, window=WINDOW, stride=STRIDE, progress=lambda *call: seen.append(call))
    assert (found.nll - nll).abs().max() < 1e-3
    assert found.value == pytest.approx(float(nll.mean().exp()), rel=1e-4)
    assert seen[-1] == (299, 299)
    other = perplexity(llm, text, window=50, stride=49)
    assert other.value != pytest.approx(found.value, rel=1e-3)  # less context


def test_a_model_beside_itself(llm: LLM, text: list[int]) -> None:
    reference = ReferenceRun(llm, text, window=WINDOW, stride=STRIDE)
    same = reference.compare(llm)
    assert (same.kl, same.top1_agreement, same.perplexity_change, same.change_error) == (0.0, 1.0, 0.0, 0.0)
    assert same.perplexity == reference.perplexity
    assert same.num_tokens == 299


def test_kl_and_agreement_of_a_changed_model(theirs: Any, llm: LLM, text: list[int]) -> None:
    reference = ReferenceRun(llm, text, window=WINDOW, stride=STRIDE)
    changed_model = transformers.AutoModelForCausalLM.from_pretrained(data_path("tiny"), dtype=torch.float32).eval()
    changed = engine()
    with torch.no_grad():
        changed_model.model.norm.weight.mul_(0.6)
        changed.model.norm.mul_(0.6)
        changed_model.model.layers[1].mlp.down_proj.weight.mul_(1.5)
        changed.model.layers[1].down.weight.mul_(1.5)  # type: ignore[attr-defined]
    kl, agrees, nll, before = [], [], [], []
    for (p, targets), (q, _) in zip(scored_rows(theirs, text), scored_rows(changed_model, text), strict=True):
        kl.append((p.exp() * (p - q)).sum(dim=1))
        agrees.append(p.argmax(dim=1) == q.argmax(dim=1))
        nll.append(-q[range(len(targets)), targets])
        before.append(-p[range(len(targets)), targets])
    found = reference.compare(changed)
    assert found.kl == pytest.approx(float(torch.cat(kl).mean()), rel=1e-3)
    assert found.top1_agreement == pytest.approx(float(torch.cat(agrees).double().mean()), abs=0.004)
    difference = torch.cat(nll) - torch.cat(before)
    assert found.perplexity_change == pytest.approx(float(difference.mean().exp()) - 1, rel=1e-2)
    error = float(difference.std()) / 299**0.5 * float(difference.mean().exp())
    assert found.change_error == pytest.approx(error, rel=1e-2)
    assert found.kl > 0.01
    assert found.top1_agreement < 1


def test_another_vocabulary_is_refused(llm: LLM, text: list[int], tmp_path: Any) -> None:
    random_model("llama", vocab_size=300).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (source := data_path("tiny") / name).exists():
            (tmp_path / name).write_bytes(source.read_bytes())
    reference = ReferenceRun(llm, text[:40], window=32, stride=16)
    with pytest.raises(ConfigError, match="has 272 tokens in its vocabulary, this model 300"):
        reference.compare(LLM(str(tmp_path), dtype="float32", device="cpu", num_kv_blocks=64))


def test_choices_are_scored_as_whole_texts_would_be(theirs: Any, llm: LLM, text: list[int]) -> None:
    question = Question(text[:20], [text[20:26], text[50:51], text[60:66], text[20:24]], 0)
    for option, found in zip(question.options, option_log_likelihoods(llm, question), strict=True):
        rows = their_rows(theirs, question.prompt + option)[19:-1]
        assert found == pytest.approx(float(rows[range(len(option)), option].sum()), abs=2e-3)


def test_questions_are_the_texts_own_and_the_model_knows_more_than_chance(llm: LLM) -> None:
    text = evaluation_tokens(llm.encode, 3000)
    questions = make_questions(text, 40)
    assert questions == make_questions(text, 40)
    assert questions != make_questions(text, 40, seed=1)
    joined = bytes(text)
    for prompt, options, answer in questions:
        assert bytes(prompt + options[answer]) in joined
        assert len(options) == 4
        assert all(option != options[answer] for i, option in enumerate(options) if i != answer)
    found = answer_questions(llm, questions)
    assert found.interval[0] > found.chance == 0.25
    reversed_answers = [question._replace(answer=(question.answer + 1) % 4) for question in questions]
    assert answer_questions(llm, reversed_answers).accuracy < 0.25  # of a wrong key
    with pytest.raises(ConfigError, match="give a longer text"):
        make_questions(text[:100], 4)


def test_wilsons_interval() -> None:
    low, high = ChoiceResult([True] * 8 + [False] * 2).interval
    assert (low, high) == (
        pytest.approx(0.4902, abs=1e-4),
        pytest.approx(0.9433, abs=1e-4),
    )  # R: prop.test without correction
    assert ChoiceResult([True] * 10).interval[1] == pytest.approx(1)


@pytest.mark.smollm2
def test_perplexity_of_smollm2_from_its_gguf_file() -> None:
    path = resolve_model("smollm2-135m")
    llm = LLM(str(path), dtype="float32", device="cpu", max_model_len=256, num_kv_blocks=32)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    text = evaluation_tokens(llm.encode, 150)
    nll = torch.cat([-rows[range(len(targets)), targets] for rows, targets in scored_rows(theirs.eval(), text)])
    found = perplexity(llm, text, window=WINDOW, stride=STRIDE)
    assert found.value == pytest.approx(float(nll.mean().exp()), rel=1e-3)
