"""Launchers as they would run on a GPU, up to the launch: each compiles, fits, and compiles once whatever a step's size."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.kernels.launches import BUILDS


def dry_launch(*arguments: str) -> list[dict[str, Any]]:
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.kernels.dry_launch", *arguments]
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_step_of_another_size_compiles_nothing_anew() -> None:
    """A kernel may have other blocks for more tokens, as its launcher decides; but with these it is one."""
    reports = dry_launch("keys")
    assert {report["case"] for report in reports} == set(BUILDS)
    several = [(report["case"], report["kernel"], report["constants"]) for report in reports if len(report["keys"]) > 1]
    assert not several


@pytest.mark.slow
@pytest.mark.parametrize(("name", "target"), [*((name, "90") for name in BUILDS), ("fp8_matmul", "100")])
def test_a_launch_at_a_models_size_compiles_and_fits(name: str, target: str) -> None:
    reports = dry_launch("compile", target, name)
    assert reports
    for report in reports:
        assert report["spill_bytes"] == 0, report
        assert report["fits"], report
