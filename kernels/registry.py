"""All Triton kernels of the package, by name."""

from collections.abc import Mapping

from kernels import norms
from kernels.spec import KernelSpec

_FAMILIES = (norms,)


def all_specs() -> Mapping[str, KernelSpec]:
    """Return every kernel at a real model's shape. Raises ValueError if two have one name."""
    specs: dict[str, KernelSpec] = {}
    for family in _FAMILIES:
        for spec in family.SPECS:
            if spec.name in specs:
                raise ValueError(f"two kernels are called {spec.name}")
            specs[spec.name] = spec
    return specs
