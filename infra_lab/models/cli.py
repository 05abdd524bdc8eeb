"""`infra-lab fetch` and `quantize`, and what commands that take a model share; the main command registers them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from infra_lab.console import errors, readable_errors

if TYPE_CHECKING:
    from rich.progress import TaskID


def fetch(
    model: Annotated[str, typer.Argument(help="Name of a model, e.g. smollm2-135m.")],
    force: Annotated[bool, typer.Option(help="Download again even if it is in the cache.")] = False,
    from_file: Annotated[
        Path | None, typer.Option("--from", help="Take the model from a file you already have.")
    ] = None,
) -> None:
    """Download a model into the cache: resumable, checked, all or nothing."""
    from infra_lab.models.fetch import fetch as fetch_model

    with readable_errors():
        path = fetch_model(model, force=force, from_file=from_file)
        errors.print(f"{model} is at {path}", highlight=False, soft_wrap=True)


def quantize(
    model: Annotated[str, typer.Argument(help="tiny, smollm2-135m, a Hugging Face folder, or a .gguf file.")],
    out: Annotated[Path, typer.Option(help="Folder to write; must not be there yet.")],
    method: Annotated[str, typer.Option(help="int8, gptq-int4-g128, nf4, fp8, ...; an unknown one lists them all.")],
) -> None:
    """Save a model with its weights in fewer bits, as a folder that every command takes as a model."""
    with readable_errors(), progress_bars() as progress:
        from infra_lab.models.quantize_folder import quantize_to_folder

        fetch_if_absent(model)
        quantized = quantize_to_folder(model, method, out, progress=progress)
    size = quantized.resident_bytes
    errors.print(f"{out}: {size / 1e6:,.1f} MB of weights, {size * 8 / quantized.config.num_parameters:.2f} bits each")


def fetch_if_absent(model: str) -> None:
    """A known model that is not in the cache is fetched on the way; that is said on stderr."""
    from infra_lab.models.fetch import cached_model, fetch
    from infra_lab.models.registry import KNOWN_MODELS

    if model in KNOWN_MODELS and cached_model(model) is None:
        errors.print(f"{model} is not in the cache yet: fetching it", highlight=False)
        fetch(model)


@contextmanager
def progress_bars() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on stderr for each thing that is reported: (what is being done, done, total)."""
    from rich.progress import Progress

    with Progress(console=errors) as bar:
        tasks: dict[str, TaskID] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        yield report
