"""The fused start of an attention layer against its four formulas in float64, and what it writes where."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import dispatch
from kernels.fused_qkv import fused_qkv, fused_qkv_cost, unfused_qkv_cost
from tests.kernels.conftest import DEVICE, assert_close, poisoned

EPS = 1e-5
UNTOUCHED = 77.0


def inputs(
    num_rows: int, hidden: int, heads: tuple[int, int], head_dim: int, dtype: torch.dtype, scale: float, bias: bool, seed: int
) -> dict[str, torch.Tensor | None]:  # fmt: skip
    generator = torch.Generator().manual_seed(seed)

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype).to(DEVICE)

    num_heads, num_kv_heads = heads
    width = (num_heads + 2 * num_kv_heads) * head_dim
    angles = torch.rand(num_rows, 1, head_dim // 2, generator=generator) * 6.28
    slots = torch.randperm(15, generator=generator)[:num_rows]
    slots[torch.rand(num_rows, generator=generator) < 0.2] = -1
    return {
        "residual": some(num_rows, hidden + 5)[:, :hidden] * scale,  # rows with a gap between them
        "norm_weight": some(hidden),
        "weight": some(width, hidden),
        "bias": some(width) if bias else None,
        "cos": torch.cat([angles.cos()] * 2, dim=-1).to(dtype).to(DEVICE),
        "sin": torch.cat([-angles.sin(), angles.sin()], dim=-1).to(dtype).to(DEVICE),
        "kv_cache": torch.full((5, 3, 2, num_kv_heads, head_dim), UNTOUCHED, dtype=dtype, device=DEVICE),
        "slots": slots.to(DEVICE),
    }


def exact_heads(given_: dict[str, torch.Tensor | None], num_turned: int) -> torch.Tensor:
    """All heads [T, Hq + 2·Hkv, D] in float64, the first `num_turned` of them turned as complex numbers."""
    x, norm, weight, cos, sin = (
        tensor.double()
        for name in ("residual", "norm_weight", "weight", "cos", "sin")
        if (tensor := given_[name]) is not None
    )
    y = x / torch.sqrt(x.square().mean(-1, keepdim=True) + EPS) * norm
    product = y @ weight.T
    if given_["bias"] is not None:
        product = product + given_["bias"].double()
    heads = product.unflatten(1, (-1, cos.shape[-1]))
    half = heads.shape[-1] // 2
    turned = torch.complex(heads[..., :half], heads[..., half:]) * torch.complex(cos[..., half:], sin[..., half:])
    turned = torch.cat([turned.real, turned.imag], dim=-1)
    return torch.cat([turned[:, :num_turned], heads[:, num_turned:]], dim=1)


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([0, 1, 2, 9]), st.sampled_from([8, 40, 200]), st.sampled_from([(1, 1), (6, 2)]),
    st.sampled_from([2, 16, 40, 64]), st.sampled_from([torch.float32, torch.bfloat16]),
    st.sampled_from([1e-3, 1.0, 1e4]), st.booleans(), st.integers(0, 2**31),
)  # fmt: skip
def test_fused_qkv(
    num_rows: int, hidden: int, heads: tuple[int, int], head_dim: int, dtype: torch.dtype, scale: float, bias: bool, seed: int
) -> None:  # fmt: skip
    given_ = inputs(num_rows, hidden, heads, head_dim, dtype, scale, bias, seed)
    num_heads, num_kv_heads = heads
    exact, cache, slots = exact_heads(given_, sum(heads)), given_["kv_cache"], given_["slots"]
    assert cache is not None
    assert slots is not None
    with poisoned():
        query = fused_qkv(**given_, eps=EPS)
    # residual · norm_weight is rounded to the dtype before the product, as a norm's result would be.
    slack = hidden**0.5 * torch.finfo(dtype).eps * 4
    assert_close(query, exact[:, :num_heads], slack=slack)
    real = slots >= 0
    by_slot = cache.flatten(0, 1)[slots[real]]  # [T, 2, Hkv, D]
    assert_close(by_slot[:, 0], exact[real, num_heads:-num_kv_heads], slack=slack)
    assert_close(by_slot[:, 1], exact[real, -num_kv_heads:], slack=slack)
    assert (cache == UNTOUCHED).sum() == cache.numel() - by_slot.numel(), "wrote beyond its slots"


def test_more_rows_than_a_block() -> None:
    given_ = inputs(9, 24, (2, 1), 8, torch.float32, 1.0, False, 0)
    many = {
        name: given_[name].repeat(15, *[1] * (given_[name].dim() - 1)) for name in ("residual", "cos", "sin", "slots")
    }
    many["slots"] = torch.arange(135, device=DEVICE)
    cache = torch.full((45, 3, 2, 1, 8), UNTOUCHED, device=DEVICE)
    query = fused_qkv(**{**given_, **many, "kv_cache": cache}, eps=EPS)
    exact = exact_heads({**given_, **many}, 3)
    assert_close(query, exact[:, :2], slack=1e-4)
    assert_close(cache.view(135, 2, 1, 8), exact[:, 2:].unsqueeze(2), slack=1e-4)


def test_the_reference_does_the_same() -> None:
    given_ = inputs(9, 40, (4, 2), 16, torch.float32, 1.0, True, 1)
    other = {**given_, "kv_cache": given_["kv_cache"].clone()}
    query = fused_qkv(**given_, eps=EPS)
    with dispatch.use("reference"):
        torch.testing.assert_close(fused_qkv(**other, eps=EPS), query, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(other["kv_cache"], given_["kv_cache"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("norm_weight", (39,)),
        ("weight", (127, 40)),
        ("weight", (64, 40)),
        ("cos", (3, 16)),
        ("slots", (2,)),
        ("bias", (8,)),
    ],
)
def test_other_shapes_are_refused(name: str, shape: tuple[int, ...]) -> None:
    given_ = inputs(3, 40, (4, 2), 16, torch.float32, 1.0, True, 1)
    given_[name] = torch.zeros(shape, dtype=given_[name].dtype, device=DEVICE)
    with pytest.raises(ValueError, match=f"{name} (is|has) .*must be"):
        fused_qkv(**given_, eps=EPS)


def test_float16_mixtures_views_and_gradients_are_refused() -> None:
    given_ = inputs(3, 40, (4, 2), 16, torch.float32, 1.0, False, 1)
    half = {name: x.half() if x is not None and x.is_floating_point() else x for name, x in given_.items()}
    cases = [
        (half, "float16 might overflow"),
        ({**given_, "residual": given_["residual"].bfloat16()}, "all must be bfloat16"),
        ({**given_, "kv_cache": given_["kv_cache"].transpose(0, 1)}, "must be contiguous"),
        ({**given_, "slots": given_["slots"].int()}, r"must be torch\.int64"),
        ({**given_, "weight": given_["weight"].clone().requires_grad_()}, "compute no gradients"),
    ]
    for arguments, message in cases:
        with pytest.raises(ValueError, match=message):
            fused_qkv(**arguments, eps=EPS)


def test_fusing_saves_what_went_to_memory_in_between() -> None:
    """Llama-3-8B: y and the product written and read once each, the turned heads once more."""
    shape = (16, 4096, 32, 8, 128, 2)
    saved = unfused_qkv_cost(*shape).num_bytes - fused_qkv_cost(*shape).num_bytes
    y, product, turned, stored = (16 * width * 2 for width in (4096, 48 * 128, 40 * 128, 16 * 128))
    assert saved == 2 * y + product + turned + (turned + 2 * stored - product)
    assert unfused_qkv_cost(*shape).flops == fused_qkv_cost(*shape).flops
