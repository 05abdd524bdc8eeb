"""The suite for GPUs, as far as it can be known without one: every case computes what its peers compute."""

from itertools import chain
from typing import Any

import pytest
import torch

import kernels
from infra_lab.bench import run_suite
from infra_lab.bench.kernel_case import Case, Peer
from infra_lab.bench.kernel_cases_compute import compute_cases
from infra_lab.bench.kernel_cases_memory import memory_cases
from infra_lab.bench.kernels import case_rows
from infra_lab.errors import InfraLabError
from kernels.cost import Cost

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


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so() -> None:
    with pytest.raises(InfraLabError, match="needs a CUDA GPU"):
        run_suite("kernels")
