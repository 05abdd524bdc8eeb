"""Triton, or a stand-in where it is not installed, so that the references can be imported anywhere.

A kernel of this package is written `@jit def _name(...)`, and launched as `_name[grid](...)`. Without Triton that raises
KernelUnavailableError; nothing else of a file needs it.
"""

import os
from collections.abc import Callable
from typing import Any

__all__ = ["HAS_TRITON", "KernelUnavailableError", "is_interpreting", "jit", "tl", "triton"]


class KernelUnavailableError(RuntimeError):
    """A Triton kernel was asked for that cannot run here."""


class _Missing:
    """Stands in for a module or a kernel: it can be named and annotated with, and says what is missing when it is used."""

    def __getattr__(self, name: str) -> Any:
        return Any if name in ("constexpr", "tensor") else _Missing()

    def __getitem__(self, grid: Any) -> Any:
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise KernelUnavailableError(
            "this needs Triton: pip install triton (Linux only); the references work without it"
        )


try:
    import triton
    import triton.language as tl
except ImportError:
    triton = tl = _Missing()
HAS_TRITON = not isinstance(triton, _Missing)


def jit(function: Callable[..., Any]) -> Any:
    """Make a Triton kernel of a function, as `triton.jit` does; under TRITON_INTERPRET=1 one that runs on the CPU."""
    return triton.jit(function) if HAS_TRITON else _Missing()


def is_interpreting() -> bool:
    """Whether kernels that are defined now run in Triton's interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "y", "yes")
