"""What the commands share: errors on one line, and the console they go to."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.markup import escape

from infra_lab.errors import InfraLabError

errors = Console(stderr=True)


@contextmanager
def readable_errors() -> Iterator[None]:
    """Turn what a user can cause into one line and an exit code, not a traceback."""
    try:
        yield
    except InfraLabError as error:
        errors.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(128 + signal.SIGPIPE) from None
