"""`infra-lab distill` and `prune`; the main command registers them."""

from pathlib import Path
from typing import Annotated

import typer

from infra_lab.console import errors, readable_errors
from infra_lab.errors import ConfigError
from infra_lab.models.cli import fetch_if_absent, progress_bars


def distill(
    model: Annotated[
        str, typer.Argument(help="The teacher: tiny, smollm2-135m, a Hugging Face folder, or a .gguf file.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write; must not be there yet.")],
    layers: Annotated[int | None, typer.Option(help="Layers of the student; each size that is left out stays.")] = None,
    hidden: Annotated[int | None, typer.Option(help="Its width.")] = None,
    intermediate: Annotated[int | None, typer.Option(help="MLP channels.")] = None,
    heads: Annotated[int | None, typer.Option(help="Query heads.")] = None,
    kv_heads: Annotated[int | None, typer.Option(help="KV heads.")] = None,
    steps: int = 200,
    batch: Annotated[int, typer.Option(help="Windows of text a step.")] = 8,
    length: Annotated[int, typer.Option(help="Tokens a window.")] = 128,
    learning_rate: float = 1e-3,
    temperature: Annotated[float, typer.Option(help="Of the soft labels.")] = 2.0,
    alpha: Annotated[float, typer.Option(help="1: learn from the teacher alone; 0: from the text alone.")] = 0.9,
    hidden_weight: Annotated[float, typer.Option(help="Weight of the hidden states' loss.")] = 0.0,
    attention_weight: Annotated[float, typer.Option(help="Weight of the attention maps' loss.")] = 0.0,
    text: Annotated[Path | None, typer.Option(help="UTF-8 text to train on; otherwise Python's help texts.")] = None,
    compute: Annotated[str, typer.Option(help="What products are computed in: float32 or bfloat16.")] = "float32",
    dtype: Annotated[str, typer.Option(help="What the weights are saved in.")] = "bfloat16",
    device: str = "cpu",
    seed: int = 0,
) -> None:
    """Train a smaller model to expect what a model expects, and save it as a folder that every command takes as a model."""
    with readable_errors(), progress_bars() as progress:
        from infra_lab.compression.distill import DistillConfig
        from infra_lab.compression.to_folder import Shape, Training, distill_to_folder

        config = DistillConfig(
            steps=steps,
            learning_rate=learning_rate,
            temperature=temperature,
            alpha=alpha,
            hidden_weight=hidden_weight,
            attention_weight=attention_weight,
            dtype=compute,  # type: ignore[arg-type]
            seed=seed,
        )
        shape = Shape(
            num_layers=layers,
            hidden_size=hidden,
            intermediate_size=intermediate,
            num_heads=heads,
            num_kv_heads=kv_heads,
        )
        training = Training(batch_size=batch, length=length, text=_text_of(text), device=device, save_dtype=dtype)
        fetch_if_absent(model)
        done = distill_to_folder(model, out, shape, config, training, progress=progress)
    first, last, draft = done.records[0], done.records[-1], done.acceptance
    errors.print(
        f"{out}: {done.student.num_parameters:,} weights; loss {first.loss:.3f} → {last.loss:.3f} in {last.step} steps; "
        f"as a draft: {draft.rate:.0%} accepted, {draft.tokens_per_step(4):.2f} tokens a step with 4 proposals",
        highlight=False,
        soft_wrap=True,
    )


def prune(
    model: Annotated[str, typer.Argument(help="tiny, smollm2-135m, a Hugging Face folder, or a .gguf file.")],
    out: Annotated[Path, typer.Option(help="Folder to write; must not be there yet.")],
    heads: Annotated[float, typer.Option(help="Share of KV heads to remove, each with its query heads.")] = 0.0,
    channels: Annotated[float, typer.Option(help="Share of MLP channels to remove.")] = 0.0,
    layers: Annotated[float, typer.Option(help="Share of layers to remove.")] = 0.0,
    criterion: Annotated[str, typer.Option(help="Of heads and channels: taylor or activation.")] = "taylor",
    layer_criterion: Annotated[str, typer.Option(help="influence, taylor or activation.")] = "influence",
    channel_multiple: Annotated[int, typer.Option(help="Keep a multiple of so many channels.")] = 16,
    recover: Annotated[int, typer.Option(help="Steps of distillation from the unpruned model afterwards.")] = 0,
    batch: Annotated[int, typer.Option(help="Windows of text a step of recovery.")] = 8,
    length: Annotated[int, typer.Option(help="Tokens a window.")] = 128,
    learning_rate: float = 3e-4,
    text: Annotated[Path | None, typer.Option(help="UTF-8 text to measure and train on.")] = None,
    dtype: Annotated[str, typer.Option(help="What the weights are saved in.")] = "bfloat16",
    device: str = "cpu",
    seed: int = 0,
) -> None:
    """Cut the least important heads, channels and layers out of a model, and save what is left as a folder."""
    with readable_errors(), progress_bars() as progress:
        from infra_lab.compression.distill import DistillConfig
        from infra_lab.compression.prune import PruneConfig
        from infra_lab.compression.to_folder import Training, prune_to_folder

        config = PruneConfig(
            heads=heads,
            channels=channels,
            layers=layers,
            criterion=criterion,  # type: ignore[arg-type]
            layer_criterion=layer_criterion,  # type: ignore[arg-type]
            channel_multiple=channel_multiple,
        )
        recovery = DistillConfig(steps=recover, learning_rate=learning_rate, seed=seed) if recover else None
        training = Training(batch_size=batch, length=length, text=_text_of(text), device=device, save_dtype=dtype)
        fetch_if_absent(model)
        pruned = prune_to_folder(model, out, config, training, recovery=recovery, progress=progress)
    left = pruned.model.config
    errors.print(
        f"{out}: {left.num_parameters:,} weights; {left.num_layers} layers, {left.num_heads} query and "
        f"{left.num_kv_heads} KV heads, {left.intermediate_size} channels",
        highlight=False,
        soft_wrap=True,
    )


def _text_of(path: Path | None) -> str | None:
    try:
        return None if path is None else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as UTF-8 text ({error})") from error
