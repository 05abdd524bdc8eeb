"""Every kernel compiles for GPUs that are not here, in its first config: without spills, and so that it fits."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from kernels.compile import TARGETS
from kernels.registry import all_specs

MATRIX = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}


def compiled(name: str) -> list[dict[str, Any]]:
    """In a process of its own: this one may have been told to interpret."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "kernels.compile", name]
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("name", all_specs())
def test_a_kernel_fits_every_target(name: str) -> None:
    reports = compiled(name)
    spec = all_specs()[name]
    assert [report["target"] for report in reports] == [target for target in TARGETS if target >= spec.min_capability]
    for report in reports:
        assert report["spill_bytes"] == 0, report
        assert report["blocks_per_multiprocessor"] >= 1, report
        if spec.uses_tensor_cores:
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
