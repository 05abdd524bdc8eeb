"""Making a launcher an operator of torch's, so that `torch.compile` and `torch.export` carry it as one node.

Called directly a launcher costs what Python costs. Only while torch traces does the call go through the dispatcher, which
would add some 20 µs to each of the small kernels of a decode step.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")
NAMESPACE = "infra_lab"
_blocks: list[None] = []
"""As many as there are `as_operators` around."""


@contextmanager
def as_operators() -> Iterator[None]:
    """Send launchers through the dispatcher in this block, so that a TorchDispatchMode sees each as one operation."""
    _blocks.append(None)
    try:
        yield
    finally:
        _blocks.pop()


def _on_its_device(launch: Callable[P, R]) -> Callable[P, R]:
    """Make the GPU of its first argument the current one while it launches: that is where Triton sends kernels."""

    @wraps(launch)
    def there(*args: P.args, **kwargs: P.kwargs) -> R:
        tensor: Any = args[0] if args else next(iter(kwargs.values()))
        if tensor.is_cuda and tensor.device.index != torch.cuda.current_device():
            with torch.cuda.device(tensor.device):
                return launch(*args, **kwargs)
        return launch(*args, **kwargs)

    return there


def operator(fake: Callable[P, R], *, mutates: tuple[str, ...] = ()) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Register a launcher as `torch.ops.infra_lab.<its name>`.

    fake: returns tensors of the shapes and dtypes that the launcher returns, from tensors without data. mutates: the names of
    the arguments that it writes to. The launcher must not return one of its arguments.
    """

    def register(launcher: Callable[P, R]) -> Callable[P, R]:
        launch = _on_its_device(launcher)
        name = f"{NAMESPACE}::{launch.__name__}"
        registered = torch.library.custom_op(name, launch, mutates_args=mutates)
        registered.register_fake(fake)

        @wraps(launch)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            if _blocks or torch.compiler.is_compiling():
                traced: R = registered(*args, **kwargs)
                return traced
            return launch(*args, **kwargs)

        return call

    return register
