"""All Triton kernels of the package, by name."""

from collections.abc import Mapping
from importlib import import_module

from kernels.spec import KernelSpec

FAMILIES = (
    "activations",
    "embedding",
    "flash_attention",
    "fused_qkv",
    "kv_store",
    "matmul",
    "merge",
    "moe",
    "moe_align",
    "norms",
    "paged_decode",
    "quantize",
    "quantized_matmul",
    "rotary",
    "sampling",
    "softmax",
    "sort",
    "w4a16",
)
"""The modules that have kernels. By their names: the package exports functions under some of them."""


def all_specs() -> Mapping[str, KernelSpec]:
    """Return every kernel at a real model's shape. Raises ValueError if two have one name."""
    specs: dict[str, KernelSpec] = {}
    for family in FAMILIES:
        for spec in import_module(f"kernels.{family}").SPECS:
            if spec.name in specs:
                raise ValueError(f"two kernels are called {spec.name}")
            specs[spec.name] = spec
    return specs
