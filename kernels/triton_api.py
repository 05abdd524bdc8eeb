"""Triton, loaded when a kernel is first needed: it takes 80 MB that a process without a GPU has no use for.

    from kernels.triton_api import jit, tl, triton

stand in for `triton.jit`, `triton.language` and `triton`. A function under `@jit` becomes a Triton kernel when it is first
launched or compiled; then the modules that it looks up, and the kernels that it calls, take their stand-ins' places in its
globals, for Triton's compiler accepts nothing else. Where Triton is not installed, that raises KernelUnavailableError, and
nothing else of a file needs it.
"""

import os
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

__all__ = ["HAS_TRITON", "KernelUnavailableError", "is_interpreting", "jit", "loaded", "tl", "triton"]
HAS_TRITON = find_spec("triton") is not None


class KernelUnavailableError(RuntimeError):
    """A Triton kernel was asked for that cannot run here."""


class constexpr:  # noqa: N801 - Triton knows an annotation by this name
    """Annotates a compile-time argument; called, it makes a constant that kernels may use as a global.

    Triton's own takes its place when a kernel of its module is first needed.
    """

    def __init__(self, value: Any) -> None:
        self.value = value

    def load(self) -> Any:
        """Return Triton's own."""
        return import_module("triton.language").constexpr(self.value)


class _Module:
    """Stands in for a module until something of it is wanted."""

    def __init__(self, name: str) -> None:
        self._name = name

    def load(self) -> Any:
        if not HAS_TRITON:
            raise KernelUnavailableError(
                "this needs Triton: pip install triton (Linux only); the references do without it"
            )
        return import_module(self._name)

    def __getattr__(self, name: str) -> Any:
        return constexpr if name == "constexpr" else getattr(self.load(), name)


class _Kernel:
    """Stands in for a Triton kernel until it is launched, called by another one, or asked for anything but its source."""

    def __init__(self, function: Callable[..., Any], varies: tuple[str, ...]) -> None:
        self.fn = function
        self.__doc__ = function.__doc__
        self._varies = varies
        self._made: Any = None

    def load(self) -> Any:
        """Return Triton's own object."""
        if self._made is None:
            self._made = triton.load().jit(self.fn, do_not_specialize=self._varies)
            scope = self.fn.__globals__
            for name, value in list(scope.items()):
                if isinstance(value, (_Module, _Kernel, constexpr)):
                    scope[name] = value.load()
        return self._made

    def __getitem__(self, grid: Any) -> Any:
        return self.load()[grid]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.load(), name)


triton: Any = _Module("triton")
tl: Any = _Module("triton.language")


def jit(function: Callable[..., Any] | None = None, *, varies: tuple[str, ...] = ()) -> Any:
    """Make a Triton kernel of a function, as `triton.jit` does; under TRITON_INTERPRET=1 one that runs on the CPU.

    varies: run-time arguments that change from step to step: numbers of tokens, pointers into a step's packed lists. Of all
    others Triton looks whether they are 1 or multiples of 16, and compiles once for each answer; for seconds, in mid-service.
    """
    return _Kernel(function, varies) if function is not None else partial(_Kernel, varies=varies)


def loaded(kernel: Any) -> Any:
    """Return Triton's own object for what `jit` returned."""
    return kernel.load() if isinstance(kernel, _Kernel) else kernel


def is_interpreting() -> bool:
    """Whether kernels that are first used now run in Triton's interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "y", "yes")
