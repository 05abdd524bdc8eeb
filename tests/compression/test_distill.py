"""Distillation: each step against transformers' gradients, then what a run reaches, repeats and refuses."""

from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from infra_lab.compression.acceptance import measure_acceptance
from infra_lab.compression.batches import random_windows, training_tokens
from infra_lab.compression.distill import DistillConfig, distill, learning_rate_at
from infra_lab.compression.to_folder import Shape, make_student
from infra_lab.compression.trainable import random_trainable
from infra_lab.data import data_path
from infra_lab.errors import ConfigError
from infra_lab.models.tokenizer import load_tokenizer
from tests.compression.models import TEXT, pair, tiny

TOKENS = training_tokens(load_tokenizer(data_path("tiny")).encode)


def batches(seed: int = 0, **sizes: int) -> object:
    return random_windows(TOKENS, **{"batch_size": 4, "length": 48, **sizes}, seed=seed)


@pytest.mark.parametrize("alpha", [0.0, 0.7, 1.0])
def test_a_steps_losses_and_gradient_are_transformers(tmp_path: Path, alpha: float) -> None:
    teacher, our_teacher = pair(tmp_path / "teacher", num_hidden_layers=4)
    student, our_student = pair(tmp_path / "student", num_hidden_layers=2)
    found = student(TEXT, labels=TEXT, output_hidden_states=True, output_attentions=True)
    with torch.no_grad():
        expected = teacher(TEXT, output_hidden_states=True, output_attentions=True)
    p, q = ((out.logits / 3).softmax(-1) for out in (expected, found))
    soft = 9 * (p * (p.log() - q.log())).sum(-1).mean()
    after_first = (found.hidden_states[1], expected.hidden_states[2])
    after_last = (before_norm(student), before_norm(teacher))  # where `hidden_states` has it after the norm
    states = ((s, t.detach()) for s, t in (after_first, after_last))
    hidden = sum((s - t).square().sum() / t.square().sum() for s, t in states) / 2
    maps = [(found.attentions[i] - expected.attentions[j]).square().mean() for i, j in ((0, 1), (1, 3))]
    attention = sum(maps) / 2
    loss = alpha * soft + (1 - alpha) * found.loss + 0.3 * hidden + 20 * attention
    loss.backward()
    loss = loss.detach()
    norm = torch.stack([p.grad.norm() for p in student.parameters()]).norm()

    config = DistillConfig(
        steps=1, temperature=3.0, alpha=alpha, hidden_weight=0.3, attention_weight=20.0, attention_kind="mse"
    )
    [record] = distill(our_teacher, our_student, [TEXT], config)
    assert record.loss == pytest.approx(float(loss), rel=1e-4)
    assert record.grad_norm == pytest.approx(float(norm), rel=1e-3)
    assert record.hidden == pytest.approx(float(hidden.detach()), rel=1e-4)
    assert record.attention == pytest.approx(float(attention.detach()), rel=1e-4)
    assert record.soft == pytest.approx(float(soft.detach()) if alpha else 0.0, rel=1e-4)
    assert record.hard == pytest.approx(float(found.loss.detach()) if alpha < 1 else 0.0, rel=1e-4)


def before_norm(model: object) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    handle = model.model.norm.register_forward_pre_hook(lambda _, x: seen.append(x[0]))  # type: ignore[attr-defined]
    model(TEXT)  # type: ignore[operator]
    handle.remove()
    return seen[0]


def test_the_first_update_is_adamws(tmp_path: Path) -> None:
    reference, student = pair(tmp_path)
    config = DistillConfig(steps=1, alpha=0.0, learning_rate=2e-2, warmup_steps=2, weight_decay=0.1, clip_norm=1e-3)
    reference(TEXT, labels=TEXT).loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(reference.parameters(), 1e-3)
    matrices = [p for p in reference.parameters() if p.ndim > 1]
    norms = [p for p in reference.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": norms, "weight_decay": 0.0}]
    torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95)).step()
    [record] = distill(student, student, [TEXT], config)
    assert record.grad_norm == pytest.approx(float(norm), rel=1e-4)
    assert record.learning_rate == 1e-2  # half-way up
    expected = dict(reference.named_parameters())
    for name, parameter in student.named_parameters():
        difference = (parameter - expected[name]).abs()
        assert difference.quantile(0.99) < 1e-3 * 1e-2, name  # Adam's first step is ±rate, whatever the gradient's size


def test_the_rate_rises_in_a_line_and_falls_along_a_cosine() -> None:
    config = DistillConfig(steps=110, warmup_steps=10, learning_rate=0.1)
    rates = [learning_rate_at(step, config) for step in range(1, 112)]
    assert rates[:10] == pytest.approx([0.01 * i for i in range(1, 11)])
    assert rates[10] == pytest.approx(0.1)
    assert rates[60] == pytest.approx(0.05)
    assert rates[85] == pytest.approx(0.1 * (1 - 2**-0.5) / 2)
    assert rates[110] == pytest.approx(0, abs=1e-12)
    assert learning_rate_at(1, replace(config, warmup_steps=0)) == 0.1


def test_a_student_comes_nearer_to_its_teacher() -> None:
    teacher = tiny()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    student = make_student(teacher, Shape(num_layers=2))
    unseen = next(batches(seed=9))
    start = measure_acceptance(teacher, student, unseen).rate
    seen: list[tuple[int, int]] = []
    records = distill(
        teacher,
        student,
        batches(),
        DistillConfig(steps=40, learning_rate=2e-3),
        progress=lambda *call: seen.append(call),
    )
    assert sum(r.soft for r in records[-5:]) < 0.8 * sum(r.soft for r in records[:5])
    assert measure_acceptance(teacher, student, unseen).rate > start + 0.05
    assert [r.step for r in records] == list(range(1, 41))
    assert seen[-1] == (40, 40)
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters())


def test_a_narrow_student_learns_by_every_loss_and_the_same_each_time() -> None:
    teacher = tiny()
    shape = Shape(num_layers=2, hidden_size=64, intermediate_size=96, num_heads=4)
    config = DistillConfig(steps=12, learning_rate=4e-3, warmup_steps=2, hidden_weight=0.5, attention_weight=0.5)

    def run(seed: int) -> tuple[list[tuple[float, ...]], torch.Tensor]:
        student = make_student(teacher, shape, seed=seed)
        records = distill(teacher, student, batches(seed), replace(config, seed=seed))
        return [tuple(record) for record in records], student.embedding

    (first, weights), (same, same_weights), (other, _) = run(0), run(0), run(1)
    assert first == same
    assert torch.equal(weights, same_weights)
    assert first != other
    for part in (2, 3, 4, 5):  # soft, hard, hidden, attention
        assert first[-1][part] < first[0][part]


def test_bfloat16_products_leave_float32_weights() -> None:
    teacher, student = tiny(), make_student(tiny(), Shape(num_layers=2))
    exact = make_student(tiny(), Shape(num_layers=2))
    config = DistillConfig(steps=2, hidden_weight=0.1, attention_weight=0.1)
    rounded = distill(teacher, student, batches(), replace(config, dtype="bfloat16"))
    full = distill(teacher, exact, batches(), config)
    for found, expected in zip(rounded, full, strict=True):
        assert found[1:6] == pytest.approx(expected[1:6], rel=0.05)
        assert found[1:6] != expected[1:6]
    assert {p.dtype for p in student.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps is 0; it must be a positive number"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"alpha": 1.5}, "alpha is 1.5; it is the share of the soft labels"),
        ({"hidden_weight": -1.0}, "hidden_weight is -1.0"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
        ({"attention_kind": "cosine"}, "attention_kind is 'cosine'"),
    ],
)
def test_impossible_settings(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DistillConfig(**options)  # type: ignore[arg-type]


def test_what_cannot_be_distilled(tmp_path: Path) -> None:
    teacher, student = tiny(), make_student(tiny(), Shape(num_layers=2))
    with pytest.raises(ConfigError, match="the teacher has 272 tokens in its vocabulary, the student 300"):
        distill(teacher, random_trainable(replace(student.config, vocab_size=300)), batches(), DistillConfig())
    for layers in ((0,), (0, 4), (-1, 0)):
        with pytest.raises(ConfigError, match="expected a teacher layer, 0 to 3, for each of the student's 2"):
            distill(teacher, student, batches(), DistillConfig(layer_map=layers))
    with pytest.raises(ConfigError, match="the batches end after 2 of 3 steps"):
        distill(teacher, student, islice(batches(), 2), DistillConfig(steps=3))  # type: ignore[call-overload]
    with torch.no_grad():
        teacher.layers[0].mlp.up_proj.weight[0] = float("nan")
    with pytest.raises(ConfigError, match="the teacher's logits are not finite at step 1"):
        distill(teacher, student, batches(), DistillConfig())
    with torch.no_grad():
        student.layers[0].mlp.up_proj.weight[0] = float("inf")
    with pytest.raises(ConfigError, match="the loss is nan at step 1; lower learning_rate"):
        distill(tiny(), student, batches(), DistillConfig())


def test_students_of_the_teachers_width_begin_with_its_layers() -> None:
    teacher = tiny()
    student = make_student(teacher, Shape(num_layers=3))
    for index, origin in enumerate((0, 2, 3)):
        ours, its = student.layers[index].mlp.up_proj.weight, teacher.layers[origin].mlp.up_proj.weight
        assert torch.equal(ours, its)
        assert ours.data_ptr() != its.data_ptr()
    with pytest.raises(ConfigError, match="the student has 5 layers, and its teacher 4"):
        make_student(teacher, Shape(num_layers=5))
    narrow = make_student(teacher, Shape(hidden_size=64))
    assert narrow.embedding.shape == (272, 64)


def test_windows_of_a_text() -> None:
    first = list(islice(random_windows(range(50), batch_size=3, length=7, seed=1), 40))
    assert all(
        torch.equal(a, b)
        for a, b in zip(first, random_windows(range(50), batch_size=3, length=7, seed=1), strict=False)
    )
    rows = torch.cat(first)
    assert rows.shape == (120, 7)
    assert (rows[:, 1:] - rows[:, :-1] == 1).all()
    assert (rows.min(), rows.max()) == (0, 49)  # both ends are reached
    with pytest.raises(ConfigError, match="the text has 6 tokens, windows 7"):
        random_windows(range(6), batch_size=1, length=7)
    with pytest.raises(ConfigError, match="at least 1 of 2"):
        random_windows(range(6), batch_size=1, length=1)
