"""Probes give numbers that physics allows, and remember them."""

import json
from pathlib import Path

import pytest

from infra_lab.hardware import probes
from infra_lab.hardware.machine import available_memory_bytes, describe_machine, num_usable_cores


def test_machine() -> None:
    machine = describe_machine()
    assert machine.num_cores == num_usable_cores() >= 1
    assert 0 < available_memory_bytes() <= machine.memory_bytes
    assert f"{machine.num_cores} cores" in machine.summary
    assert machine.torch in machine.summary


def test_ceilings_are_positive_and_bfloat16_is_measured() -> None:
    ceilings = probes.measure_ceilings("cpu")
    assert 1e8 < ceilings.read_bytes_per_s < 1e13
    assert 1e8 < ceilings.copy_bytes_per_s < 1e13
    assert set(ceilings.matmul_flops) == {"float32", "bfloat16"}
    assert probes.measure_ceilings("cpu", quick=True).matmul_flops == {}


def test_ceilings_are_remembered_and_a_damaged_cache_is_no_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INFRA_LAB_CACHE", str(tmp_path))
    first = probes.cached_ceilings("cpu")
    assert probes.cached_ceilings("cpu") == first
    path = tmp_path / "ceilings.json"
    known = json.loads(path.read_text())
    next(iter(known.values()))["measured_at"] = 0.0
    next(iter(known.values()))["ceilings"]["read_bytes_per_s"] = 1.0
    path.write_text(json.dumps(known))
    assert probes.cached_ceilings("cpu").read_bytes_per_s > 1.0, "too old to be trusted"
    path.write_text("{ damaged")
    assert probes.cached_ceilings("cpu").device == "cpu"
