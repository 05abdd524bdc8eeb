"""Every launcher on a GPU: against float64, in a CUDA graph, under torch.compile, on a second GPU, and compiled once.

The cases are those of tests/kernels/launches, which tests/kernels/test_bounds.py runs tiny on the CPU.
"""

from collections.abc import Iterator

import pytest
import torch

import kernels
from kernels import activations, matmul, norms
from kernels.triton_api import triton
from tests.kernels.conftest import assert_close, poisoned
from tests.kernels.launches import BUILDS, LLAMA, ODD, Launch, Size, Tensors

BF16 = torch.bfloat16
SHAPES = {
    "llama": (LLAMA, 1024, BF16),
    "odd": (ODD, 333, BF16),
    "one": (LLAMA, 2, BF16),
    "float32": (ODD, 77, torch.float32),
}


@pytest.fixture(autouse=True)
def _only_triton() -> Iterator[None]:
    with kernels.use("triton"):
        yield
    torch.cuda.empty_cache()


def build(name: str, size: Size, tokens: int, dtype: torch.dtype, seed: int = 0, device: str = "cuda") -> Launch:
    if "fp8" in name and torch.cuda.get_device_capability(device) < (8, 9):
        pytest.skip(f"FP8 needs compute capability 8.9; this GPU has {torch.cuda.get_device_capability(device)}")
    torch.manual_seed(seed)
    return BUILDS[name](torch.device(device), size, tokens, dtype)


def copied(inputs: Tensors) -> Tensors:
    return {name: tensor.clone() for name, tensor in inputs.items()}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", BUILDS)
def test_it_computes_its_formula(name: str, shape: str) -> None:
    launch = build(name, *SHAPES[shape])
    with poisoned():
        launch.verify()


@pytest.mark.parametrize("name", BUILDS)
def test_a_graph_computes_what_a_launch_does(name: str) -> None:
    """Captured with one set of numbers, replayed with another one: bit for bit, twice."""
    first, second = (build(name, LLAMA, 48, BF16, seed) for seed in (1, 2))
    held = copied(first.inputs)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        first.run(held)  # compiles
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = first.run(held)
    expected = second.run(copied(second.inputs))
    for _ in range(2):
        for name_, tensor in second.inputs.items():
            held[name_].copy_(tensor)
        graph.replay()
        for result, wanted in zip(results, expected, strict=True):
            assert torch.equal(result.view(torch.uint8), wanted.view(torch.uint8))


def test_a_compiled_function_is_one_graph() -> None:
    tokens = 96
    x, residual = (torch.randn(tokens, LLAMA.hidden, device="cuda", dtype=BF16) for _ in range(2))
    norm = torch.randn(LLAMA.hidden, device="cuda", dtype=BF16)
    gate_up = torch.randn(512, LLAMA.hidden, device="cuda", dtype=BF16) / LLAMA.hidden**0.5

    def layer(x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        y = norms.add_rms_norm(x, residual, norm, 1e-5)
        return activations.silu_mul(matmul.matmul(y, gate_up.t())) * 2 + 1

    expected_residual = residual.clone()
    with torch.no_grad():
        expected = layer(x, expected_residual)
        result = torch.compile(layer, fullgraph=True)(x, residual)
    assert torch.equal(residual, expected_residual)
    assert_close(result, expected.double(), ulps=2)


@pytest.mark.parametrize(
    "name", ["softmax", "top_k", "matmul", "matmul_down", "w4a16_matmul", "moe", "fused_qkv", "paged_flash_attention"]
)
def test_a_step_of_another_size_compiles_nothing_anew(name: str) -> None:
    compiled: list[str] = []

    def note(*, repr: str, **_: object) -> None:
        compiled.append(repr)

    build(name, LLAMA, 41, BF16).run()
    triton.knobs.runtime.jit_post_compile_hook = note
    try:
        for tokens in (42, 47, 48):
            build(name, LLAMA, tokens, BF16).run()
    finally:
        triton.knobs.runtime.jit_post_compile_hook = None
    assert compiled == []


@pytest.mark.parametrize("name", ["rms_norm", "kv_store", "paged_decode", "matmul", "int8_matmul", "sample"])
def test_tensors_of_another_gpu(name: str) -> None:
    """While the first one is current."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    with torch.cuda.device(0):
        build(name, ODD, 33, BF16, device="cuda:1").verify()
