"""Weights of 4 bits against float64: every code, group sizes, odd sizes, splits, and the layout bit by bit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kernels
from kernels.spec import KernelConfig
from kernels.w4a16 import launch_w4a16_matmul, pack_w4, unpack_w4, w4a16_config, w4a16_matmul
from tests.kernels.conftest import DEVICE, assert_close, poisoned

Weights = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
DTYPES = st.sampled_from([torch.bfloat16, torch.float16])


def quantized(N: int, groups: int, group_size: int, dtype: torch.dtype, seed: int) -> Weights:
    """Random codes q [N, K], scale and zero [K/G, N]; zero points over all of 0 … 15."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.randint(0, 16, (N, groups * group_size), generator=generator, dtype=torch.uint8)
    zero = torch.randint(0, 16, (groups, N), generator=generator, dtype=torch.uint8)
    scale = (torch.rand((groups, N), generator=generator) * 0.1).to(dtype)
    return q.to(DEVICE), scale.to(DEVICE), zero.to(DEVICE)


def exact(x: torch.Tensor, weights: Weights, bias: torch.Tensor | None) -> torch.Tensor:
    q, scale, zero = (part.double().cpu() for part in weights)
    K = q.shape[1]
    group_size = K // scale.shape[0]
    dense = torch.empty_like(q)
    for k in range(K):
        dense[:, k] = scale[k // group_size] * (q[:, k] - zero[k // group_size])
    y = (x.double().cpu() @ dense.t()).to(DEVICE)
    return y if bias is None else y + bias.double()


def test_two_weights_share_a_byte() -> None:
    q = torch.arange(32).remainder(16).repeat(1, 2)  # [1, 64]: two groups of 32
    packed = pack_w4(q, 32)
    assert packed.shape == (1, 32)
    assert packed[0, 3] == 3 | (3 << 4)  # weights 3 and 3 + 16 of group 0
    q[0, 32 + 16 + 5] = 9
    assert pack_w4(q, 32)[0, 16 + 5] == 5 | (9 << 4)  # weights 5 and 16 + 5 of group 1


@given(st.integers(0, 5), st.integers(0, 3), st.sampled_from([32, 64, 128]), st.integers(0, 2**31))
def test_unpacking_undoes_packing(N: int, groups: int, group_size: int, seed: int) -> None:
    q, _, _ = quantized(N, groups, group_size, torch.float16, seed)
    assert torch.equal(unpack_w4(pack_w4(q, group_size), group_size), q)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 20), st.integers(0, 70), st.integers(1, 5), st.sampled_from([32, 64, 128]), DTYPES, st.integers(1, 4),
    st.booleans(), st.booleans(), st.integers(0, 2**31),
)  # fmt: skip
def test_products(
    M: int,
    N: int,
    groups: int,
    group_size: int,
    dtype: torch.dtype,
    split: int,
    has_bias: bool,
    has_gaps: bool,
    seed: int,
) -> None:
    weights = quantized(N, groups, group_size, dtype, seed)
    K = groups * group_size
    wide = torch.full((M, 2 * K), float("nan"), dtype=dtype, device=DEVICE)
    x = wide[:, ::2] if has_gaps else wide[:, :K]
    x.copy_(torch.randn((M, K), generator=torch.Generator().manual_seed(seed)))
    bias = torch.randn(N, generator=torch.Generator().manual_seed(seed + 1)).to(dtype).to(DEVICE) if has_bias else None
    config = KernelConfig({"BLOCK_M": 16, "BLOCK_N": 32}, 4, 2)
    with poisoned():
        y = launch_w4a16_matmul(config, split, x, pack_w4(weights[0], group_size), *weights[1:], bias)
    assert y.dtype == dtype
    assert_close(y, exact(x, weights, bias), ulps=2, slack=1e-4)


@pytest.mark.parametrize("mode", ["triton", "reference"])
@pytest.mark.parametrize("rows", [1, 17])
def test_a_product_as_a_model_calls_it(mode: kernels.dispatch.Mode, rows: int) -> None:
    weights = quantized(200, 8, 128, torch.bfloat16, 0)  # K = 1024: two parts
    x = torch.randn((rows, 1024), generator=torch.Generator().manual_seed(1)).bfloat16().to(DEVICE)
    with poisoned(), kernels.use(mode):
        y = w4a16_matmul(x, pack_w4(weights[0], 128), *weights[1:])
    assert_close(y, exact(x, weights, None), ulps=2, slack=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_code_and_zero_point_is_exact(dtype: torch.dtype) -> None:
    q = torch.arange(16, dtype=torch.uint8, device=DEVICE).repeat(16, 2)  # [16, 32]
    zero = torch.arange(16, dtype=torch.uint8, device=DEVICE)[None, :]
    scale = torch.ones((1, 16), dtype=dtype, device=DEVICE)
    x = torch.eye(32, dtype=dtype, device=DEVICE)
    expected = (q.float() - zero.float().t()).t()  # [32, 16]
    assert torch.equal(w4a16_matmul(x, pack_w4(q, 32), scale, zero).float(), expected)


def test_more_rows_take_a_higher_tile() -> None:
    assert [w4a16_config(rows).blocks["BLOCK_M"] for rows in (0, 1, 16, 17, 64, 1000)] == [16, 16, 16, 32, 64, 64]


def test_what_does_not_fit_together_is_refused() -> None:
    q, scale, zero = quantized(4, 2, 32, torch.bfloat16, 0)
    packed, x = pack_w4(q, 32), torch.ones((3, 64), dtype=torch.bfloat16, device=DEVICE)
    with pytest.raises(ValueError, match=r"must be \[M, K\] and \[N, K/2\]"):
        w4a16_matmul(x[:, :32], packed, scale, zero)
    with pytest.raises(ValueError, match=r"x is torch\.float32"):
        w4a16_matmul(x.float(), packed, scale, zero)
    with pytest.raises(ValueError, match=r"both must be \[K/G, N\] with K = 64 and N = 4"):
        w4a16_matmul(x, packed, scale.t(), zero.t())
    with pytest.raises(ValueError, match="group size is 16"):
        w4a16_matmul(x, packed, scale.repeat(2, 1), zero.repeat(2, 1))
    with pytest.raises(ValueError, match=r"bias is \[3\]"):
        w4a16_matmul(x, packed, scale, zero, x[:, 0])
    with pytest.raises(ValueError, match="4 bits hold 0 to 15"):
        pack_w4(q + 16, 32)
    with pytest.raises(ValueError, match="compute no gradients"):
        w4a16_matmul(x.requires_grad_(), packed, scale, zero)


def test_torch_compile_sees_one_node() -> None:
    q, scale, zero = quantized(4, 2, 32, torch.bfloat16, 0)
    x = torch.ones((3, 64), dtype=torch.bfloat16, device=DEVICE)
    torch.library.opcheck(torch.ops.infra_lab.w4a16_matmul.default, (x, pack_w4(q, 32), scale, zero))
