"""What a GPU launches is what the recorder counted without one; Inductor's plan for Triton; all ways give one result."""

import pytest
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from infra_lab.bench import fusion
from infra_lab.fusion.block import BlockShape
from infra_lab.fusion.compare import by_inductor, by_level
from infra_lab.fusion.launches import record
from tests.fusion.layers import SMALL


def add_norm(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    total = residual + x
    wide = total.float()
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)).to(x.dtype)


def gate(gate: torch.Tensor, up: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    return F.silu(gate) * up


@pytest.mark.parametrize("function", [add_norm, gate])
def test_the_recorder_counts_what_the_gpu_launches(function: object) -> None:
    assert callable(function)
    inputs = [torch.randn(size, device="cuda", dtype=torch.bfloat16) for size in ((64, 512), (64, 512), (512,))]
    function(*inputs)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        function(*inputs)
        torch.cuda.synchronize()
    on_gpu = [event for event in profiled.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    started = [event.name for event in on_gpu if not event.name.startswith("Mem")]
    counted = record(function, [tensor.to("meta") for tensor in inputs], weights=(), cache=())
    assert len(started) == len(counted.launches), started


@pytest.mark.parametrize("shape", [BlockShape(1, 1, 31), BlockShape(2, 32, 0)], ids=str)
def test_inductor_plans_for_the_gpu_too(shape: BlockShape) -> None:
    planned = by_inductor(SMALL, shape, dtype=torch.bfloat16, device="cuda")
    eager = by_level(SMALL, shape, "nothing")
    assert planned.launches < eager.launches
    assert planned.weight_bytes == eager.weight_bytes


@pytest.mark.parametrize("shape", [BlockShape(2, 1, 31), BlockShape(2, 32, 0)], ids=str)
def test_all_ways_run_and_graphs_replay(shape: BlockShape) -> None:
    ways = fusion.ways_of(*fusion.first_layer("tiny", "cuda"), shape)
    assert set(ways) == {"eager", "torch.compile", "engine", "eager, graph", "compile, graph", "engine, graph"}
    with torch.no_grad():
        expected = ways["eager"]()[0]
        torch.testing.assert_close(ways["torch.compile"]()[0], expected, atol=5e-2, rtol=5e-2)
        for name, way in ways.items():
            way()
            torch.cuda.synchronize()
            assert name
    rows = fusion.time_rows(ways, "tiny", shape, repeats=2)
    assert [row.name.partition(": ")[2] for row in rows] == list(ways)[1:]
