"""What a student is told by its teacher: soft labels, hidden states, attention maps; and by the text: hard labels.

All are means in the dtype of the student's tensor, float32 at least, with gradients to the student alone if the teacher ran
under `no_grad`.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F

AttentionKind = Literal["kl", "mse"]


def logit_loss(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """T² · KL(softmax(teacher / T) ‖ softmax(student / T)), nats a token, of logits [..., V] (Hinton 2015).

    A temperature above 1 shows how the teacher ranks what it would hardly ever say. Gradients of the soft labels shrink with
    1/T², and T² keeps their balance with the hard labels' when T is turned.
    """
    expected = (_wide(teacher) / temperature).log_softmax(dim=-1).flatten(0, -2)
    found = (_wide(student) / temperature).log_softmax(dim=-1).flatten(0, -2)
    return F.kl_div(found, expected, log_target=True, reduction="batchmean") * temperature**2


def hard_loss(student: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    """Cross entropy of logits [B, T, V] with each next token of token_ids [B, T], nats a token."""
    return F.cross_entropy(_wide(student[:, :-1]).flatten(0, 1), token_ids[:, 1:].flatten())


def hidden_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Mean squared error of hidden states [B, T, H] as a share of the teacher's mean square: 0 is equal, 1 as good as zeros.

    The share, since a residual stream grows by orders of magnitude from layer to layer: without it the last layer would be
    all that counts (DistilBERT, Sanh 2019, takes the cosine; TinyBERT, Jiao 2020, the plain error).
    """
    expected = _wide(teacher)
    return F.mse_loss(_wide(student), expected) / expected.square().mean()


def attention_loss(student: torch.Tensor, teacher: torch.Tensor, kind: AttentionKind = "kl") -> torch.Tensor:
    """KL(teacher ‖ student) a row (MiniLM, Wang 2020), or the mean squared error, of maps [B, heads, T, T].

    Where the numbers of heads differ, of the mean map over heads.
    """
    student, teacher = _wide(student), _wide(teacher)
    if student.shape[1] != teacher.shape[1]:
        student, teacher = student.mean(dim=1), teacher.mean(dim=1)
    if kind == "mse":
        return F.mse_loss(student, teacher)
    tiny = torch.finfo(student.dtype).tiny  # the future has probability 0 in both
    return (torch.xlogy(teacher, teacher) - teacher * student.clamp_min(tiny).log()).sum(dim=-1).mean()


def mean_of(losses: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the mean of scalar losses, one a layer."""
    return torch.stack(list(losses)).mean()


def layer_map(num_student: int, num_teacher: int) -> tuple[int, ...]:
    """Return for each student layer the teacher layer to imitate, evenly spread, the last the last (TinyBERT, Jiao 2020)."""
    return tuple(-(-(i + 1) * num_teacher // num_student) - 1 for i in range(num_student))


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x if x.dtype == torch.float64 else x.float()
