"""Each planted bug breaks what it says and nothing else; the lesson counts on it."""

import math
from itertools import repeat

import pytest
import torch

from infra_lab.compression.distill import DistillConfig, DistillRecord, distill
from infra_lab.compression.trainable import TrainableLM, random_trainable
from infra_lab.course.planted_distillation_bugs import DISTILLATION_BUGS, planted_distillation_bug
from infra_lab.errors import ConfigError
from infra_lab.models.config import ModelConfig

SIZES = {
    "vocab_size": 11,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_layers": 1,
    "num_heads": 2,
    "num_kv_heads": 1,
}
TEXT = torch.arange(24).view(2, 12) * 7 % 11


def model(seed: int) -> TrainableLM:
    config = ModelConfig(architecture="llama", head_dim=8, max_position=32, tie_word_embeddings=True, **SIZES)
    return random_trainable(config, seed=seed)


def run(student: int, steps: int = 1) -> list[DistillRecord]:
    config = DistillConfig(steps=steps, temperature=2.0, alpha=0.5, learning_rate=1e-2, warmup_steps=0)
    return distill(model(0), model(student), repeat(TEXT), config, progress=lambda done, total: None)


def log_probs(seed: int, temperature: float = 1.0) -> list[list[float]]:
    """Of each position, by the formula."""
    with torch.no_grad():
        logits = (model(seed)(TEXT).logits / temperature).flatten(0, 1).tolist()
    return [[z - math.log(math.fsum(math.exp(other) for other in row)) for z in row] for row in logits]


def soft_as_written() -> bool:
    """Whether a step's soft loss is T² · KL(teacher ‖ student), both at T."""
    expected, found = log_probs(0, 2.0), log_probs(1, 2.0)
    kl = [
        math.fsum(math.exp(p) * (p - q) for p, q in zip(*rows, strict=True))
        for rows in zip(expected, found, strict=True)
    ]
    return run(1)[0].soft == pytest.approx(4 * sum(kl) / len(kl), rel=1e-4)


def hard_as_written() -> bool:
    """Whether its hard loss is the cross entropy with each next token."""
    rows, ids = log_probs(1), TEXT.flatten().tolist()
    nll = [-rows[i][ids[i + 1]] for i in range(23) if i != 11]
    return run(1)[0].hard == pytest.approx(sum(nll) / len(nll), rel=1e-4)


def teacher_has_nothing_to_learn() -> bool:
    return abs(run(0)[0].soft) < 1e-5


def loss_falls() -> bool:
    records = run(1, steps=20)
    return records[-1].loss < records[0].loss


@pytest.mark.parametrize(
    ("bug", "found"),
    [
        ("none", (True, True, True, True)),
        ("A", (True, True, False, True)),
        ("B", (False, False, True, True)),
        ("C", (False, True, True, True)),
    ],
)
def test_what_each_bug_breaks(bug: str, found: tuple[bool, ...]) -> None:
    with planted_distillation_bug(bug):
        assert (soft_as_written(), teacher_has_nothing_to_learn(), hard_as_written(), loss_falls()) == found
    assert (soft_as_written(), hard_as_written()) == (True, True), "the right functions are back"
    assert set(DISTILLATION_BUGS) == {"none", "A", "B", "C"}


def test_an_unknown_bug_is_refused() -> None:
    with pytest.raises(ConfigError, match="there is no bug 'D'"), planted_distillation_bug("D"):
        pass
