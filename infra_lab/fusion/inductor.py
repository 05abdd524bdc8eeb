"""What torch.compile makes of a module: the kernels of Inductor's scheduler, after it has fused (Ansel et al. 2024).

    module ─▶ Dynamo ─▶ AOTAutograd ─▶ patterns ─▶ loops ─▶ scheduler: fuse ─▶ C++ or Triton ─▶ compiler
                        ATen graph     attention                    ▲
                                       in one call                  └ we look here, and stop

Looking needs no C++ compiler, which makes the kernels that run; `can_compile` says whether there is one. The hook is
Inductor's `_post_fusion_custom_pass`, given what the scheduler holds at that point; it is not a public interface, and a
version of torch that has changed it raises InductorChangedError here.

Without a GPU, Inductor plans for the CPU. Its planner for CUDA asks the driver for the device's properties before it fuses.
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from infra_lab.errors import InfraLabError
from infra_lab.fusion.launches import Role


class InductorChangedError(InfraLabError, RuntimeError):
    """This version of torch does not show its scheduler as the one did that this was written for."""


@dataclass(frozen=True, slots=True)
class InductorKernel:
    """One kernel that Inductor would start."""

    name: str
    """Of a library's function, such as "extern_kernels.mm", or "fused"."""
    nodes: tuple[str, ...]
    """Nodes of the ATen graph that went into it, views among them."""
    traffic: dict[Role, int] = field(default_factory=dict)
    """Bytes read and written, by role."""

    @property
    def is_library_call(self) -> bool:
        """Whether the kernel was written by somebody else: products, and attention."""
        return self.name != "fused"


class _SeenError(Exception):
    """Raised to stop the compiler once the kernels are known."""


def inductor_kernels(
    module: nn.Module, inputs: Sequence[torch.Tensor], *, cache: Sequence[int] = ()
) -> list[InductorKernel]:
    """Return the kernels of module(*inputs), in inference, for these shapes. cache: which of the inputs count as cache.

    Raises InductorChangedError if Inductor does not tell.
    """
    found: list[InductorKernel] = []
    roles: list[Role] = []

    def backend(graph: torch.fx.GraphModule, examples: list[torch.Tensor]) -> Callable[..., Any]:
        from torch._inductor.compile_fx import compile_fx

        kept = {id(inputs[index]) for index in cache}
        for example in examples:
            role: Role = "cache" if id(example) in kept else "activation"
            roles.append("weight" if isinstance(example, nn.Parameter) else role)
        made: Any = compile_fx(graph, examples)
        return made  # type: ignore[no-any-return]

    def look(nodes: list[Any]) -> list[Any]:
        found.extend(_described(nodes, roles))
        raise _SeenError

    torch._dynamo.reset()
    try:
        with _hook(look), torch.no_grad():
            torch.compile(module, backend=backend, fullgraph=True, dynamic=False)(*inputs)
    except Exception as error:
        if not found:
            raise InductorChangedError(
                f"torch {torch.__version__} did not show Inductor's kernels ({type(error).__name__}: {error}); "
                "this was written for torch 2.11 to 2.13"
            ) from error
    finally:
        torch._dynamo.reset()
    return found


@contextmanager
def _hook(look: Callable[[list[Any]], list[Any]]) -> Iterator[None]:
    from torch._inductor import config

    names = ("torch._inductor", "torch._dynamo", "torch.fx")
    levels = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.CRITICAL)  # that we stop it is no error
        with (
            config.patch(_post_fusion_custom_pass=look, force_disable_caches=True, compile_threads=1),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")  # it warns that there are no caches
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _described(nodes: list[Any], roles: list[Role]) -> Iterator[InductorKernel]:
    from torch._inductor.virtualized import V

    role_of = dict(zip(V.graph.graph_input_names, roles, strict=True))
    for node in nodes:
        traffic: dict[Role, int] = {"weight": 0, "cache": 0, "activation": 0}
        for buffer, num_bytes in node.get_read_write_buffer_accesses(include_reads=True, include_writes=True).items():
            traffic[role_of.get(buffer, "activation")] += num_bytes
        if not any(traffic.values()):
            continue  # it starts nothing: a concatenation that its parts write in place, an output unpacked
        parts = [part.node for part in node.get_nodes()]
        library = getattr(parts[0], "python_kernel_name", None)
        origins = dict.fromkeys(name for part in parts for name in sorted(origin.name for origin in part.origins))
        yield InductorKernel(str(library) if library else "fused", tuple(origins), traffic)


def compiled(module: nn.Module) -> Callable[..., Any]:
    """Return the module as torch.compile makes it for the shapes that it is first called with; that call takes seconds."""
    function: Callable[..., Any] = torch.compile(module, fullgraph=True, dynamic=False)
    return function


def can_compile() -> bool:
    """Whether Inductor finds what it compiles CPU kernels with: a C++ compiler."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return False
    return True
