"""A kernel as the tools see it: what compiles it, which of its numbers may be turned, and what it computes on.

Compile-only tests, the tuner, the benches and the kernel explorer all walk over these, so a new kernel is listed once.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kernels.work import Work


@dataclass(frozen=True, slots=True)
class KernelConfig:
    """What a launch may choose freely: the result is the same, the speed is not."""

    blocks: Mapping[str, int]
    """Compile-time sizes, by the kernel's own names: {"BLOCK_M": 128, …}."""
    num_warps: int = 4
    num_stages: int = 3


@dataclass(frozen=True, slots=True)
class KernelSpec:
    """One Triton kernel with the arguments of a real model's shape."""

    name: str
    kernel: Any
    """What `jit` returned."""
    signature: Mapping[str, str]
    """Run-time arguments to Triton types: {"x_ptr": "*bf16", "eps": "fp32", "num_columns": "i32"}."""
    constants: Mapping[str, Any]
    """Compile-time arguments that the shape or the caller decides: {"HEAD_DIM": 128, "IS_CAUSAL": True}."""
    configs: tuple[KernelConfig, ...]
    """The search space of the tuner; the first is what runs untuned."""
    aligned: tuple[str, ...] = field(default=())
    """Arguments that are multiples of 16 (pointers, strides of rows): not knowing it, Triton would load element by element."""
    uses_tensor_cores: bool = False
    """Whether it lives on matrix products: then its code must have matrix instructions."""
    min_capability: int = 80
    """Targets below cannot compile it: 89 for FP8."""
    work: "Work" = field(kw_only=True)
    """The launch of a real model that the arguments above are of: its shape, its least cost, and its traffic."""
