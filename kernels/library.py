"""Making a launcher an operator of torch's, so that `torch.compile` and `torch.export` carry it as one node.

Called directly a launcher costs what Python costs. Only while torch traces does the call go through the dispatcher, which
would add some 20 µs to each of the small kernels of a decode step.
"""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")
NAMESPACE = "infra_lab"


def operator(fake: Callable[P, R], *, mutates: tuple[str, ...] = ()) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Register a launcher as `torch.ops.infra_lab.<its name>`.

    fake: returns tensors of the shapes and dtypes that the launcher returns, from tensors without data. mutates: the names of
    the arguments that it writes to. The launcher must not return one of its arguments.
    """

    def register(launch: Callable[P, R]) -> Callable[P, R]:
        name = f"{NAMESPACE}::{launch.__name__}"
        registered = torch.library.custom_op(name, launch, mutates_args=mutates)
        registered.register_fake(fake)

        @wraps(launch)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            if torch.compiler.is_compiling():
                traced: R = registered(*args, **kwargs)
                return traced
            return launch(*args, **kwargs)

        return call

    return register
