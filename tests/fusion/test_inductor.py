"""What Inductor's scheduler shows, checked where the answer is known."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from infra_lab.fusion import inductor
from infra_lab.fusion.block import DecoderBlock
from infra_lab.fusion.compare import CACHE, by_level
from infra_lab.fusion.inductor import InductorChangedError, can_compile, compiled, inductor_kernels
from tests.fusion.layers import DECODE, PREFILL, SMALL, block_with_data


class Gate(nn.Module):
    def forward(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        return F.silu(gate) * up


def test_the_gate_becomes_one_kernel_that_moves_three_tensors() -> None:
    (kernel,) = inductor_kernels(Gate(), [torch.randn(64, 96), torch.randn(64, 96)])
    assert not kernel.is_library_call
    assert kernel.traffic == {"weight": 0, "cache": 0, "activation": 3 * 64 * 96 * 4}


def test_a_product_stays_a_librarys_and_its_weight_is_known() -> None:
    module = nn.Sequential(nn.Linear(64, 96, bias=False), nn.Tanh())
    product, tanh = inductor_kernels(module, [torch.randn(8, 64)])
    assert product.is_library_call
    assert product.traffic == {"weight": 64 * 96 * 4, "cache": 0, "activation": 8 * 64 * 4 + 8 * 96 * 4}
    assert tanh.traffic["activation"] == 2 * 8 * 96 * 4


@pytest.mark.parametrize("shape", [DECODE, PREFILL], ids=str)
def test_the_layer_in_fewer_kernels_with_every_weight_once(shape: object) -> None:
    block, inputs = block_with_data(shape)  # type: ignore[arg-type]
    kernels = inductor_kernels(block, inputs, cache=CACHE)
    assert sum(kernel.traffic["weight"] for kernel in kernels) == sum(
        weight.nbytes for weight in DecoderBlock(SMALL, dtype=torch.float32).parameters()
    )
    assert sum("mm" in kernel.name for kernel in kernels) == 7  # q, k, v, o, gate, up, down
    eager = by_level(SMALL, shape, "nothing", dtype=torch.float32)  # type: ignore[arg-type]
    assert len(kernels) < eager.launches
    cache = sum(inputs[index].nbytes for index in CACHE)
    assert sum(kernel.traffic["cache"] for kernel in kernels) == cache


def test_looking_needs_no_compiler_and_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config, cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    def none() -> str:
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    assert not can_compile()
    assert len(inductor_kernels(Gate(), [torch.randn(4, 4), torch.randn(4, 4)])) == 1
    assert config._post_fusion_custom_pass is None


def test_a_changed_torch_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inductor, "_described", lambda nodes, roles: iter(()))
    with pytest.raises(InductorChangedError, match=r"2\.11 to 2\.13"):
        inductor_kernels(Gate(), [torch.randn(4, 4), torch.randn(4, 4)])


@pytest.mark.slow
@pytest.mark.skipif(not can_compile(), reason="needs a C++ compiler")
def test_what_it_compiles_computes_the_same() -> None:
    block, inputs = block_with_data(DECODE)
    with torch.no_grad():
        for got, expected in zip(compiled(block)(*inputs), block(*inputs), strict=True):
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
