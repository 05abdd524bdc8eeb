"""Knowledge distillation: a student learns what its teacher expects, not only what the text says.

    loss = α · T² · KL(teacher ‖ student at temperature T) + (1 - α) · cross entropy with the text
         + hidden_weight · hidden states + attention_weight · attention maps

The teacher runs on the same batch, without gradients. Where the student is narrower, its hidden states go through a learnt
matrix that is thrown away at the end; where it is shallower, `layer_map` says which teacher layer each of its layers imitates.
"""

import math
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import nn

from infra_lab.compression.losses import (
    AttentionKind,
    attention_loss,
    hard_loss,
    hidden_loss,
    layer_map,
    logit_loss,
    mean_of,
)
from infra_lab.compression.trainable import Forward, TrainableLM
from infra_lab.errors import ConfigError
from infra_lab.models.calibrate import progress_bar
from infra_lab.models.calibrated import Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillConfig:
    """How to distil. Raises ConfigError for a value that makes no sense, naming it."""

    steps: int = 200
    learning_rate: float = 1e-3
    """The highest; 1e-3 to 4e-3 suits a small student from scratch, 1e-4 to 5e-4 one that starts from trained weights."""
    warmup_steps: int = 10
    weight_decay: float = 0.01
    """Of matrices; norms and biases have none."""
    clip_norm: float = 1.0
    temperature: float = 2.0
    alpha: float = 0.9
    """1: soft labels alone; 0: the text alone, which is plain training."""
    hidden_weight: float = 0.0
    attention_weight: float = 0.0
    attention_kind: AttentionKind = "kl"
    layer_map: tuple[int, ...] | None = None
    """The teacher layer, from 0, of each student layer; None: spread evenly."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What products are computed in; weights, their moments and losses stay in float32."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "learning_rate", "clip_norm", "temperature"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be a positive number")
        for name in ("warmup_steps", "weight_decay", "hidden_weight", "attention_weight"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be 0 or a positive number")
        if not 0 <= self.alpha <= 1:
            raise ConfigError(f"alpha is {self.alpha}; it is the share of the soft labels, 0 to 1")
        if self.dtype not in ("float32", "bfloat16"):
            raise ConfigError(f"dtype is {self.dtype!r}; expected float32 or bfloat16")
        if self.attention_kind not in ("kl", "mse"):
            raise ConfigError(f"attention_kind is {self.attention_kind!r}; expected kl or mse")


class DistillRecord(NamedTuple):
    """One step; each loss before its weight, 0 where it is switched off."""

    step: int
    """From 1."""
    loss: float
    """The weighted sum that was minimised."""
    soft: float
    hard: float
    hidden: float
    attention: float
    learning_rate: float
    grad_norm: float
    """Before clipping."""


def distill(
    teacher: TrainableLM,
    student: TrainableLM,
    batches: Iterable[torch.Tensor],
    config: DistillConfig,
    *,
    progress: Progress | None = None,
) -> list[DistillRecord]:
    """Train the student in place with AdamW, one batch [B, T] a step; return what each step saw. The teacher is unchanged.

    The same seed, weights and batches give the same student on the same machine. Without `progress`, a terminal or a notebook
    gets a bar. Raises ConfigError for models with different vocabularies, a layer map that does not fit, batches that run out,
    and a loss that is not finite.
    """
    _check_pair(teacher, student, config)
    if progress is None:
        with progress_bar("distilling") as report:
            return _Run(teacher, student, config).steps(batches, report)
    return _Run(teacher, student, config).steps(batches, progress)


def learning_rate_at(step: int, config: DistillConfig) -> float:
    """Return the rate of a step, from 1: up in a line, then down along half a cosine, to 0 after the last step."""
    if step <= config.warmup_steps:
        return config.learning_rate * step / config.warmup_steps
    done = (step - 1 - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


class _Run:
    """One distillation: the optimizer, the projections, the loop."""

    def __init__(self, teacher: TrainableLM, student: TrainableLM, config: DistillConfig) -> None:
        self.teacher, self.student, self.config = teacher, student, config
        self.device = student.embedding.device
        self.layers = config.layer_map or layer_map(student.config.num_layers, teacher.config.num_layers)
        widths = (student.config.hidden_size, teacher.config.hidden_size)
        self.projections: list[nn.Module] = [nn.Identity() for _ in self.layers]
        if config.hidden_weight and widths[0] != widths[1]:
            generator = torch.Generator().manual_seed(config.seed)
            self.projections = [_projection(*widths, generator).to(student.embedding) for _ in self.layers]
        parameters = [*student.parameters(), *(p for part in self.projections for p in part.parameters())]
        self.parameters = parameters
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
                {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
            ],
            lr=config.learning_rate,
            betas=(0.9, 0.95),
        )

    def steps(self, batches: Iterable[torch.Tensor], report: Progress | None) -> list[DistillRecord]:
        records: list[DistillRecord] = []
        source = iter(batches)
        while len(records) < self.config.steps:
            tokens = next(source, None)
            if tokens is None:
                raise ConfigError(
                    f"the batches end after {len(records)} of {self.config.steps} steps; give more, or fewer steps"
                )
            records.append(self._step(len(records) + 1, tokens.to(self.device)))
            if report is not None:
                report(len(records), self.config.steps)
        return records

    def _step(self, step: int, tokens: torch.Tensor) -> DistillRecord:
        config = self.config
        rate = learning_rate_at(step, config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        want_maps = config.attention_weight > 0
        in_bfloat16 = torch.autocast(self.device.type, torch.bfloat16) if config.dtype == "bfloat16" else nullcontext()
        with in_bfloat16:
            with torch.no_grad():
                expected = self.teacher(tokens, attention=want_maps)
            found = self.student(tokens, attention=want_maps)
        soft, hard, hidden, attention = self._losses(tokens, expected, found)
        loss = config.alpha * soft + (1 - config.alpha) * hard
        loss = loss + config.hidden_weight * hidden + config.attention_weight * attention
        if not torch.isfinite(loss):
            if not torch.isfinite(expected.logits).all():
                raise ConfigError(f"the teacher's logits are not finite at step {step}; check its weights")
            raise ConfigError(f"the loss is {float(loss.detach())} at step {step}; lower learning_rate")
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        norm = nn.utils.clip_grad_norm_(self.parameters, config.clip_norm)
        self.optimizer.step()
        return DistillRecord(
            step=step,
            loss=float(loss.detach()),
            soft=float(soft.detach()),
            hard=float(hard.detach()),
            hidden=float(hidden.detach()),
            attention=float(attention.detach()),
            learning_rate=rate,
            grad_norm=float(norm),
        )

    def _losses(self, tokens: torch.Tensor, expected: Forward, found: Forward) -> tuple[torch.Tensor, ...]:
        config = self.config
        off = tokens.new_zeros((), dtype=torch.float32)
        soft = logit_loss(found.logits, expected.logits, config.temperature) if config.alpha > 0 else off
        hard = hard_loss(found.logits, tokens) if config.alpha < 1 else off
        hidden = attention = off
        if config.hidden_weight:
            states = zip(self.projections, found.hidden[1:], self.layers, strict=True)
            hidden = mean_of([hidden_loss(project(x), expected.hidden[i + 1]) for project, x, i in states])
        if config.attention_weight:
            maps = zip(found.attention, self.layers, strict=True)
            attention = mean_of([attention_loss(m, expected.attention[i], config.attention_kind) for m, i in maps])
        return soft, hard, hidden, attention


def _projection(num_in: int, num_out: int, generator: torch.Generator) -> nn.Linear:
    layer = nn.Linear(num_in, num_out, bias=False, device="meta")
    layer.weight = nn.Parameter(torch.randn(num_out, num_in, generator=generator) * num_in**-0.5)
    return layer


def _check_pair(teacher: TrainableLM, student: TrainableLM, config: DistillConfig) -> None:
    if teacher.config.vocab_size != student.config.vocab_size:
        raise ConfigError(
            f"the teacher has {teacher.config.vocab_size:,} tokens in its vocabulary, the student "
            f"{student.config.vocab_size:,}; soft labels need the same one"
        )
    layers = config.layer_map
    if layers is None:
        return
    if len(layers) != student.config.num_layers or not all(0 <= i < teacher.config.num_layers for i in layers):
        raise ConfigError(
            f"layer_map is {layers}; expected a teacher layer, 0 to {teacher.config.num_layers - 1}, for each of the "
            f"student's {student.config.num_layers}"
        )
