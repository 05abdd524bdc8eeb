"""Every kernel compiles for GPUs that are not here, in its first config: without spills, and so that it fits."""

from importlib import import_module

import pytest

from kernels.compile import TARGETS
from kernels.registry import FAMILIES
from tests.kernels.compiling import compiling, reports_of


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_fits_every_target(family: str) -> None:
    specs = {spec.name: spec for spec in import_module(f"kernels.{family}").SPECS}
    reports = reports_of("kernels.compile", *specs)
    expected = [(name, target) for name, spec in specs.items() for target in TARGETS if target >= spec.min_capability]
    assert [(report["name"], report["target"]) for report in reports] == expected
    for report in reports:
        assert report["spill_bytes"] == 0, report
        assert report["blocks_per_multiprocessor"] >= 1, report
        if specs[report["name"]].uses_tensor_cores:
            assert report["tensor_core_instructions"], f"{report} has no matrix instructions"


def test_a_target_that_there_is_not() -> None:
    said = compiling(
        "-c",
        "from kernels.compile import compile_kernel\nfrom kernels.registry import all_specs\n"
        "try:\n    compile_kernel(all_specs()['rms_norm'], 70)\nexcept ValueError as error:\n    print(error)",
    )
    assert "sm_70" in said
    assert "sm_90" in said
