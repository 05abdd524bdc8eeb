"""The same formats in another implementation: torchao, where it is installed (it is no dependency of this project)."""

import pytest
import torch

from infra_lab.quantization.float_weights import quantize_to_table
from infra_lab.quantization.formats.nf4 import nf4_levels

pytest.importorskip("torchao", reason="torchao is not installed")


def weight() -> torch.Tensor:
    w = torch.randn(64, 192, generator=torch.Generator().manual_seed(0)) * torch.logspace(-4, 2, 64).unsqueeze(1)
    w[3, 32:64] = 0.0
    return w


def test_mxfp4_bit_by_bit() -> None:
    mx_tensor = pytest.importorskip("torchao.prototype.mx_formats.mx_tensor")
    scale, data = mx_tensor.to_mx(weight(), torch.float4_e2m1fn_x2, 32)
    ours = quantize_to_table(weight(), "mxfp4")
    scale, is_zero = scale.view(torch.uint8).view(64, -1), torch.zeros(64, 6, dtype=torch.bool)
    is_zero[3, 1] = True  # any scale will do
    assert torch.equal(ours.scale[~is_zero], scale[~is_zero])
    assert torch.equal(ours.packed, data.view(torch.uint8).view(64, -1))


def test_nvfp4_value_by_value() -> None:
    nvfp4 = pytest.importorskip("torchao.prototype.mx_formats.nvfp4_tensor")
    w = weight()[40:]  # no block so small that its scale would be zero, which torchao does not let it become
    ours = quantize_to_table(w, "nvfp4")
    theirs = nvfp4.NVFP4Tensor.to_nvfp4(w, per_tensor_scale=ours.tensor_scale).dequantize(torch.float32)
    torch.testing.assert_close(ours.dequantize(), theirs)


def test_nf4s_levels() -> None:
    quantization = pytest.importorskip("torchao.quantization")
    torch.testing.assert_close(
        nf4_levels(), quantization.to_nf4(torch.randn(128, 128)).nf4.float(), rtol=0, atol=1e-4
    )  # four digits there
