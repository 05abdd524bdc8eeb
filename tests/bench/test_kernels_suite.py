"""The suite for GPUs, as far as it can be known without one: every case computes what its peers compute."""

from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

import kernels
from infra_lab.bench import kernel_prediction, run_suite
from infra_lab.bench.kernel_case import Case, Peer
from infra_lab.bench.kernel_cases_compute import compute_cases
from infra_lab.bench.kernel_cases_memory import memory_cases
from infra_lab.bench.kernels import case_rows
from infra_lab.errors import InfraLabError
from kernels import tuned, w4a16
from kernels.chips import CHIPS
from kernels.compile import Compiled
from kernels.compile_worker import CompileWorker
from kernels.cost import Cost
from kernels.norms import rms_norm_cost
from kernels.registry import all_specs
from kernels.spec import KernelConfig, KernelSpec
from kernels.tuning import tune_launches

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def flat(result: Any) -> list[torch.Tensor]:
    return [result] if isinstance(result, torch.Tensor) else [part for part in result or () if part is not None]


@torch.inference_mode()
def test_every_case_computes_what_its_peers_compute() -> None:
    torch.manual_seed(0)
    names = set()
    for case in chain(memory_cases(DEVICE, tiny=True), compute_cases(DEVICE, tiny=True)):
        names.add(case.name)
        assert case.cost.num_bytes > 0
        with kernels.use("triton"):
            ours = flat(case.ours())
        for peer in (peer for peer in case.peers if peer.is_anywhere):
            for mine, other in zip(ours, flat(peer.run()), strict=True):
                assert mine.shape == other.shape, (case.name, peer.name)
                if case.name == "sampling":
                    continue  # draws of two generators
                difference = (mine.double() - other.double()).abs().max()
                assert difference <= 0.02 * other.double().abs().max() + 1e-6, (case.name, peer.name)
    assert len(names) > 15


def test_rows_hold_ours_against_the_roof_and_each_peer() -> None:
    def broken() -> None:
        raise RuntimeError("no kernel image\nfor this device")

    times = {"ours": 1.0, "twice": 2.0}
    peers = (Peer("twice as long", lambda: "twice", 1.5), Peer("absent", broken))
    case = Case("made up", "1 × 1", lambda: "ours", Cost(10**12, 10**9), "copy", 0.9, peers)

    def time(function: Any) -> float:
        return times[function()]

    first, second, third = case_rows(case, {"copy": 1.25e9}, time)
    assert (first.value, first.peer_value, first.ratio, first.is_reached) == (1.0, 1.25, 0.8, False)
    assert (second.ratio, second.is_reached) == (2.0, True)
    assert "no kernel image" in third.note
    assert list(case_rows(case, {"bfloat16": 1.0}, time)) == []


def test_what_is_predicted_stands_beside_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the config that the launcher chose, not the spec's first. Compiled in another process: this one interprets."""
    monkeypatch.setenv("INFRA_LAB_CACHE", str(tmp_path))
    tuned.forget()
    x, weight, worker, compiled = torch.ones(2, 4096), torch.ones(4096), CompileWorker(), []

    def ours() -> torch.Tensor:
        with kernels.use("triton"):
            return kernels.rms_norm(x, weight, 1e-5)

    def compile_elsewhere(spec: KernelSpec, target: int, config: KernelConfig) -> Compiled:
        compiled.append((spec.name, target, config))
        return worker.compile(spec.name, target, config)

    monkeypatch.setattr(kernel_prediction, "compile_kernel", compile_elsewhere)
    case = Case("norm", "", ours, rms_norm_cost(16_384, 4096, 2), "copy", spec="rms_norm")
    other_size = replace(case, cost=rms_norm_cost(8, 4096, 2))
    try:
        tune_launches(ours, timer=lambda launch: lambda config: abs(config.num_warps - 16))
        _, predicted = case_rows(case, {"copy": 3e12}, lambda _: 1e-4, CHIPS["H200"])
        assert len(list(case_rows(other_size, {"copy": 3e12}, lambda _: 1e-4, CHIPS["H200"]))) == 1
    finally:
        worker.close()
        tuned.forget()
    assert compiled == [("rms_norm", 90, KernelConfig({"BLOCK": 4096}, 16, 1))]
    assert predicted.value == pytest.approx(4800.0, rel=0.01), "GB/s of an H200's memory"
    assert predicted.peer_value == pytest.approx(case.cost.num_bytes / 1e9 / 1e-4)
    assert "memory-bound" in predicted.note


def test_most_cases_have_the_size_of_their_kernels_spec(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only then is there a prediction. On the meta device a tensor of any size takes no memory."""
    monkeypatch.setattr(w4a16, "pack_w4", lambda q, _: q[:, ::2])  # it looks at its values, and there are none
    meta, specs = torch.device("meta"), all_specs()
    cases = list(chain(memory_cases(meta, tiny=False), compute_cases(meta, tiny=False)))
    assert {case.spec for case in cases} <= {*specs, ""}
    predicted = {case.spec for case in cases if case.spec and specs[case.spec].work.cost == case.cost}
    assert predicted == {case.spec for case in cases if case.spec}
    assert len(predicted) >= 16


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so() -> None:
    with pytest.raises(InfraLabError, match="needs a CUDA GPU"):
        run_suite("kernels")
