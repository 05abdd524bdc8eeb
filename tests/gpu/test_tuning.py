"""Tuning on a GPU: what measured fastest is what is launched, into a CUDA graph too."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from kernels import tuned
from kernels.matmul import matmul
from kernels.norms import rms_norm, rms_norm_reference
from kernels.spec import KernelConfig
from kernels.tuning import tune_launches
from kernels.tuning_file import describe

TOLERANCE = {"rtol": 2e-2, "atol": 2e-2}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("INFRA_LAB_CACHE", str(tmp_path))
    tuned.forget()
    yield tmp_path / "tuning"
    tuned.forget()


def times_of(folder: Path, shape: str) -> dict[str, float | None]:
    (path,) = folder.iterdir()
    times: dict[str, float | None] = json.loads(path.read_text())["seconds"][shape]
    return times


def norm_inputs(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    x, weight = (torch.randn(shape, device="cuda", dtype=torch.bfloat16) for shape in ((rows, 4096), (4096,)))
    return x, weight


def test_what_measured_fastest_is_launched(folder: Path) -> None:
    x, weight = norm_inputs(8192)
    (((_, shape), config),) = tune_launches(lambda: rms_norm(x, weight, 1e-5)).items()
    times = times_of(folder, shape)
    assert len(times) == 3, "8, 4 and 16 warps"
    assert times[describe(config)] == min(seconds for seconds in times.values() if seconds is not None)
    with tuned.watch() as seen:
        y = rms_norm(x, weight, 1e-5)
    assert list(seen.given.values()) == [config]
    torch.testing.assert_close(y, rms_norm_reference(x, weight, 1e-5), **TOLERANCE)


def test_a_file_may_be_read_while_a_graph_is_captured() -> None:
    x, weight = norm_inputs(64)
    tune_launches(lambda: rms_norm(x, weight, 1e-5))  # and all configs are compiled
    tuned.forget()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = rms_norm(x, weight, 1e-5)
    x.copy_(torch.randn_like(x))
    graph.replay()
    torch.testing.assert_close(y, rms_norm_reference(x, weight, 1e-5), **TOLERANCE)


def test_what_does_not_fit_is_left_out(folder: Path) -> None:
    """256 × 128 tiles of A and B, 128 of K deep, five times: 480 KiB of shared memory."""
    a, b = (torch.randn(512, 512, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    too_large = KernelConfig({"BLOCK_M": 256, "BLOCK_N": 128, "BLOCK_K": 128, "GROUP": 8}, 8, 5)
    with pytest.warns(UserWarning, match="does not run here"):
        best = tune_launches(lambda: matmul(a, b), more={"matmul": [too_large]})
    (((_, shape), config),) = best.items()
    assert config != too_large
    assert times_of(folder, shape)[describe(too_large)] is None
    torch.testing.assert_close(matmul(a, b), a @ b, rtol=2e-2, atol=0.5)
