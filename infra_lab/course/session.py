"""Which lesson this kernel is in."""

import gc
import os
import sys
from importlib import import_module

from infra_lab.course.catalog import section

_LOADED_ANYWAY = ("infra_lab.engine.llm", "infra_lab.widgets")
"""What every lesson loads sooner or later, with all that is beneath it."""
_current = ""


def lesson(number: str) -> None:
    """Begin a lesson: remember its section, and print its title and this machine in two lines.

    Without a GPU, Triton kernels that are made from now on run in Triton's interpreter, on the CPU. Raises ConfigError for
    a section that the course does not have.
    """
    from infra_lab.hardware.machine import describe_machine

    global _current
    entry = section(number)
    if not _current:
        _interpret_without_gpu()
        _load_libraries()
    _current = entry.number
    sys.stdout.write(f"{entry.number} {entry.title} · {entry.chinese}\n{describe_machine().summary}\n")


def _interpret_without_gpu() -> None:
    """Have Triton interpret where there is no GPU to run on. Triton looks once, when it is loaded: later it is too late."""
    import torch

    if not torch.cuda.is_available() and "triton" not in sys.modules:
        os.environ.setdefault("TRITON_INTERPRET", "1")


def _load_libraries() -> None:
    """Load them now, and spare the garbage collector their 300,000 objects: walking over them stops a slider for 100 ms."""
    for name in _LOADED_ANYWAY:
        import_module(name)
    gc.collect()
    gc.freeze()


def current_section() -> str:
    """Return the section that `lesson` was last called with, or "" before that."""
    return _current
