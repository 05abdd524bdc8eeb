"""Three ways in which distillation goes wrong, planted on purpose: section 3.4 has the learner find them.

A   takes each token itself for the hard label, not the next one
B   softens the teacher alone, and leaves the student at temperature 1
C   measures the divergence the other way round, KL(student ‖ teacher)

Each leaves shapes and speed as they were, and with each the loss that is trained on falls as it should.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F

from infra_lab.compression import distill
from infra_lab.errors import ConfigError


def _own_token(student: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(student.flatten(0, 1), token_ids.flatten())


def _teacher_softened_alone(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    return _divergence(teacher / temperature, student) * temperature**2


def _student_first(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    return _divergence(student / temperature, teacher / temperature) * temperature**2


def _divergence(of: torch.Tensor, to: torch.Tensor) -> torch.Tensor:
    """KL(of ‖ to) of logits [..., V], nats a position."""
    expected, found = (logits.log_softmax(dim=-1).flatten(0, -2) for logits in (of, to))
    return F.kl_div(found, expected, log_target=True, reduction="batchmean")


DISTILLATION_BUGS: dict[str, tuple[str, Callable[..., torch.Tensor]] | None] = {
    "none": None,
    "A": ("hard_loss", _own_token),
    "B": ("logit_loss", _teacher_softened_alone),
    "C": ("logit_loss", _student_first),
}
"""By name: which function the training loop looks up, and what stands there instead."""


@contextmanager
def planted_distillation_bug(name: str) -> Iterator[None]:
    """Have the package distil with one of the bugs in this block. Raises ConfigError for an unknown one."""
    if name not in DISTILLATION_BUGS:
        raise ConfigError(f"there is no bug {name!r}; there are {', '.join(DISTILLATION_BUGS)}")
    planted = DISTILLATION_BUGS[name]
    if planted is None:
        yield
        return
    function, wrong = planted
    right: Any = getattr(distill, function)
    try:
        setattr(distill, function, wrong)
        yield
    finally:
        setattr(distill, function, right)
