"""Every kernel compiles for GPUs that are not here, in its first config: without spills, and so that it fits."""

import json
import os
import subprocess
import sys
from importlib import import_module
from typing import Any

import pytest

from kernels.compile import TARGETS
from kernels.registry import FAMILIES


def compiled(*names: str) -> list[dict[str, Any]]:
    """In a process of its own: this one may have been told to interpret."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "kernels.compile", *names]
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_fits_every_target(family: str) -> None:
    specs = {spec.name: spec for spec in import_module(f"kernels.{family}").SPECS}
    reports = compiled(*specs)
    expected = [(name, target) for name, spec in specs.items() for target in TARGETS if target >= spec.min_capability]
    assert [(report["name"], report["target"]) for report in reports] == expected
    for report in reports:
        assert report["spill_bytes"] == 0, report
        assert report["blocks_per_multiprocessor"] >= 1, report
        if specs[report["name"]].uses_tensor_cores:
            assert report["tensor_core_instructions"], f"{report} has no matrix instructions"


def test_a_target_that_there_is_not() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    code = (
        "from kernels.compile import compile_kernel\nfrom kernels.registry import all_specs\n"
        "try:\n    compile_kernel(all_specs()['rms_norm'], 70)\nexcept ValueError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    assert "sm_70" in done.stdout
    assert "sm_90" in done.stdout
