"""From a loaded model to a calibrated one, as `LLM(..., quantization="gptq-int4-g128")` needs it: texts, progress bar, go."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from infra_lab.models.calibrated import Progress, method_of, quantize_layers
from infra_lab.models.sensitivity import mixed_method
from infra_lab.models.transformer import CausalLM
from infra_lab.quantization.calibration import SLICE_TOKENS, calibration_tokens
from infra_lab.quantization.recipes import Recipe


def calibrate(
    model: CausalLM,
    encode: Callable[[str], list[int]],
    recipe: Recipe,
    *,
    text: str | None = None,
    progress: Progress | None = None,
) -> None:
    """Quantize a dense model in place, calibrated on 128 slices of 64 tokens of `text`, or of Python's help texts.

    Takes a few minutes for SmolLM2 on two cores. Without `progress`, a terminal or a notebook gets a bar. Raises
    ConfigError for a text that is too short, and what `quantize_model` raises.
    """
    length = min(SLICE_TOKENS, len(model.rotary.cos))
    token_ids = calibration_tokens(encode, length=length, text=text)
    if progress is not None:
        quantize_model(model, token_ids, recipe, progress=progress)
        return
    with progress_bar(f"calibrating {recipe.name}") as report:
        quantize_model(model, token_ids, recipe, progress=report)


def quantize_model(
    model: CausalLM, token_ids: torch.Tensor, recipe: Recipe, *, progress: Progress | None = None
) -> None:
    """Replace the dense matrices of all layers by quantized ones, in place; embedding and output layer stay.

    token_ids: what to calibrate on, [texts, tokens] (see `calibration`); `progress` is called after each matrix. Raises
    ConfigError for a model that is not dense, NaN weights or activations, and widths that no group size divides.
    """
    is_mixed = recipe.method == "mixed"
    method = mixed_method(model, token_ids, progress=progress) if is_mixed else method_of(recipe)
    quantize_layers(model, token_ids, method, recipe, progress=progress)


@contextmanager
def progress_bar(title: str) -> Iterator[Progress | None]:
    """Show a bar on stderr as long as the block runs; yields None where nobody would see it, or rich is not installed."""
    try:
        from rich.console import Console
        from rich.progress import Progress as Bar
    except ModuleNotFoundError:  # a GPU box with the engine alone
        yield None
        return
    console = Console(stderr=True)
    if not (console.is_terminal or console.is_jupyter):
        yield None
        return
    with Bar(console=console, transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
