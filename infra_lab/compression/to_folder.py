"""From a model's name to a folder of a smaller one: what `infra-lab distill` and `infra-lab prune` do."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from infra_lab.compression.acceptance import Acceptance, measure_acceptance
from infra_lab.compression.batches import random_windows, training_tokens
from infra_lab.compression.cutting import Kept, remove
from infra_lab.compression.distill import DistillConfig, DistillRecord, distill
from infra_lab.compression.prune import PruneConfig, Pruned, prune, recover
from infra_lab.compression.saving import dtype_of, save_trainable
from infra_lab.compression.trainable import TrainableLM, load_trainable, random_trainable
from infra_lab.errors import ConfigError
from infra_lab.models.config import ModelConfig
from infra_lab.models.fetch import resolve_model
from infra_lab.models.hf_write import check_target
from infra_lab.models.quantize_folder import Progress
from infra_lab.models.tokenizer import load_tokenizer
from infra_lab.quantization.calibration import help_texts, token_slices

NUM_TEXTS = 16
"""Texts that importance is measured on, and acceptance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A student's sizes; None: the teacher's."""

    num_layers: int | None = None
    hidden_size: int | None = None
    intermediate_size: int | None = None
    num_heads: int | None = None
    num_kv_heads: int | None = None

    def of(self, teacher: ModelConfig) -> ModelConfig:
        """Return the student's configuration. Raises ConfigError for sizes that no model can have."""
        given = {name: value for name in self.__slots__ if (value := getattr(self, name)) is not None}
        return replace(teacher, **given)


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What to train on, where, and how the result is kept."""

    batch_size: int = 8
    length: int = 128
    text: str | None = None
    """None: the half of Python's help texts that models are not judged on."""
    device: str = "cpu"
    save_dtype: str = "bfloat16"


@dataclass(frozen=True, slots=True)
class Distilled:
    """A student, what each step saw, and how good a draft of its teacher it is on text that it was not trained on."""

    student: TrainableLM
    records: list[DistillRecord]
    acceptance: Acceptance


def make_student(teacher: TrainableLM, shape: Shape, *, seed: int = 0) -> TrainableLM:
    """Return a student of this shape.

    One that is only shallower gets the teacher's layers, evenly spread, as DistilBERT did (Sanh 2019); any other one random
    weights. Raises ConfigError for sizes that no model can have, and for more layers than the teacher of the same width has.
    """
    config = shape.of(teacher.config)
    if replace(config, num_layers=teacher.config.num_layers) != teacher.config:
        return random_trainable(config, seed=seed, device=teacher.embedding.device)
    if config.num_layers > teacher.config.num_layers:
        raise ConfigError(f"the student has {config.num_layers} layers, and its teacher {teacher.config.num_layers}")
    count = config.num_layers
    step = (teacher.config.num_layers - 1) / max(1, count - 1)
    layers = tuple(int(i * step + 0.5) for i in range(count))
    groups, channels = tuple(range(config.num_kv_heads)), tuple(range(config.intermediate_size))
    return remove(teacher, Kept(layers, (groups,) * count, (channels,) * count))


def distill_to_folder(
    model: str,
    folder: Path,
    shape: Shape,
    config: DistillConfig,
    training: Training,
    *,
    progress: Progress | None = None,
) -> Distilled:
    """Distil a model (its name, folder or .gguf file) into a smaller one and save that to `folder`, for `LLM(folder)`.

    Raises ConfigError, before any work, for a folder that is not empty; and what loading, training and saving raise.
    """
    report = progress or (lambda what, done, total: None)
    path, teacher, tokens = _start(model, folder, training)
    student = make_student(teacher, shape, seed=config.seed)
    batches = random_windows(tokens, batch_size=training.batch_size, length=training.length, seed=config.seed)
    records = distill(teacher, student, batches, config, progress=lambda done, total: report("distilling", done, total))
    save_trainable(student, path, folder, dtype=training.save_dtype)
    unseen = load_tokenizer(path).encode(help_texts("evaluation"))
    texts = token_slices(unseen, min(NUM_TEXTS, len(unseen) // training.length), training.length)
    return Distilled(student, records, measure_acceptance(teacher, student, texts.to(training.device)))


def prune_to_folder(
    model: str,
    folder: Path,
    config: PruneConfig,
    training: Training,
    *,
    recovery: DistillConfig | None = None,
    progress: Progress | None = None,
) -> Pruned:
    """Prune a model (its name, folder or .gguf file), let it recover if `recovery` is given, and save it to `folder`.

    Raises ConfigError, before any work, for a folder that is not empty; and what loading, pruning and saving raise.
    """
    report = progress or (lambda what, done, total: None)
    path, original, tokens = _start(model, folder, training)
    texts = token_slices(tokens, min(NUM_TEXTS, len(tokens) // training.length), training.length)
    pruned = prune(original, texts, config, progress=lambda done, total: report("measuring", done, total))
    if recovery is not None:
        batches = random_windows(tokens, batch_size=training.batch_size, length=training.length, seed=recovery.seed)
        recover(pruned, original, batches, recovery, progress=lambda done, total: report("recovering", done, total))
    save_trainable(pruned.model, path, folder, dtype=training.save_dtype)
    return pruned


def _start(model: str, folder: Path, training: Training) -> tuple[Path, TrainableLM, list[int]]:
    check_target(folder)
    dtype_of(training.save_dtype)
    path = resolve_model(model)
    tokens = training_tokens(load_tokenizer(path).encode, training.text)
    random_windows(tokens, batch_size=training.batch_size, length=training.length)  # refuses sizes that cannot be
    return path, load_trainable(path, device=_device(training.device)), tokens


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device is {name!r}; expected cpu or cuda") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is 'cuda', and torch sees no GPU here; expected cpu")
    return device
