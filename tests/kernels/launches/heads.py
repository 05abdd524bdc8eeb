"""What turns, stores and copies heads, and the fused start of a layer."""

import torch

from kernels import rotary
from kernels.fused_qkv import fused_qkv
from kernels.kv_store import MAX_COPIES, copy_blocks, kv_store
from tests.kernels.launches.launch import EPS, Launch, Size, Tensors, equal, randn, within
from tests.kernels.launches.rows import exact_rms_norm


def _angles(device: torch.device, tokens: int, head_dim: int, dtype: torch.dtype) -> Tensors:
    angles = torch.rand(tokens, 1, head_dim // 2, device=device) * 6.28
    sin = torch.cat([-angles.sin(), angles.sin()], -1)
    return {"cos": torch.cat([angles.cos()] * 2, -1).to(dtype), "sin": sin.to(dtype)}


def _turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    return x.double() * cos.double() + x.double().roll(x.shape[-1] // 2, -1) * sin.double()


def rotary_copy(device: torch.device, size: Size, tokens: int, dtype: torch.dtype) -> Launch:
    inputs = {"x": randn(device, dtype, tokens, size.heads + size.kv_heads, size.head_dim)}
    inputs |= _angles(device, tokens, size.head_dim, dtype)
    return Launch(inputs, lambda i: rotary.apply_rotary(i["x"], i["cos"], i["sin"]), lambda i: (_turned(**i),))


def rotary_in_place(device: torch.device, size: Size, tokens: int, dtype: torch.dtype) -> Launch:
    """Query and key are parts of one projection."""
    inputs = {"qkv": randn(device, dtype, tokens, size.heads + 2 * size.kv_heads, size.head_dim)}
    inputs |= _angles(device, tokens, size.head_dim, dtype)
    turned = size.heads + size.kv_heads

    def call(i: Tensors) -> None:
        rotary.rotary_(i["qkv"][:, : size.heads], i["qkv"][:, size.heads : turned], i["cos"], i["sin"])

    def exact(i: Tensors) -> tuple[torch.Tensor]:
        values = i["qkv"][:, turned:].double()
        return (torch.cat([_turned(i["qkv"][:, :turned], i["cos"], i["sin"]), values], 1),)

    return Launch(inputs, call, exact, ("qkv",))


def _cache(device: torch.device, size: Size, blocks: int, dtype: torch.dtype) -> torch.Tensor:
    return randn(device, dtype, blocks, size.page, 2, size.kv_heads, size.head_dim)


def _slots(device: torch.device, tokens: int, room: int) -> torch.Tensor:
    """One of them padding."""
    slots = torch.randperm(room, device=device)[:tokens]
    slots[-1] = -1
    return slots


def store(device: torch.device, size: Size, tokens: int, dtype: torch.dtype) -> Launch:
    blocks = 2 * tokens // size.page + 1
    inputs = {"cache": _cache(device, size, blocks, dtype), "slots": _slots(device, tokens, blocks * size.page)}
    inputs["kv"] = randn(device, dtype, tokens, 2 * size.kv_heads, size.head_dim)

    def call(i: Tensors) -> None:
        kv_store(i["cache"], i["kv"][:, : size.kv_heads], i["kv"][:, size.kv_heads :], i["slots"])

    def exact(i: Tensors) -> tuple[torch.Tensor]:
        return (_stored(i["cache"], i["kv"].unflatten(1, (2, size.kv_heads)), i["slots"]),)

    return Launch(inputs, call, exact, ("cache",), equal)


def store_int8(device: torch.device, size: Size, tokens: int, dtype: torch.dtype) -> Launch:
    return _store_in_8_bits(device, size, tokens, dtype, torch.int8)


def store_fp8(device: torch.device, size: Size, tokens: int, dtype: torch.dtype) -> Launch:
    return _store_in_8_bits(device, size, tokens, dtype, torch.float8_e4m3fn)


def _store_in_8_bits(
    device: torch.device, size: Size, tokens: int, dtype: torch.dtype, eight_bits: torch.dtype
) -> Launch:
    """Values are within half a step of x / scale; what no slot names stays as it was."""
    inputs = store(device, size, tokens, dtype).inputs
    inputs["cache"] = torch.randint_like(inputs["cache"], 0, 100, dtype=torch.int8).view(eight_bits)
    inputs["scales"] = torch.rand(inputs["cache"].shape[:4], device=device)

    def call(i: Tensors) -> None:
        key, value = i["kv"][:, : size.kv_heads], i["kv"][:, size.kv_heads :]
        kv_store(i["cache"], key, value, i["slots"], i["scales"])

    def exact(i: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
        kv = i["kv"].double().unflatten(1, (2, size.kv_heads))
        scales = kv.abs().amax(-1) / (127 if eight_bits == torch.int8 else 448)
        cache = _stored(i["cache"].double(), kv / scales.unsqueeze(-1), i["slots"])
        return cache, _stored(i["scales"].double(), scales, i["slots"])

    def check(actual: torch.Tensor, exact: torch.Tensor) -> None:
        if actual.dtype == torch.float32:
            assert torch.allclose(actual.double(), exact, rtol=1e-6, atol=0)
            return
        half_step = 0.501 if eight_bits == torch.int8 else exact.abs().clamp(min=2**-6) * 0.0626
        assert ((actual.double() - exact).abs() <= half_step).all()

    return Launch(inputs, call, exact, ("cache", "scales"), check)


def _stored(cache: torch.Tensor, kv: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    after = cache.clone()
    after.flatten(0, 1)[slots[slots >= 0]] = kv[slots >= 0].to(cache.dtype)
    return after


def copies(device: torch.device, size: Size, tokens: int, dtype: torch.dtype) -> Launch:
    """A chain: every source but one is also written to."""
    count = min(tokens, MAX_COPIES)
    order = torch.randperm(count + 1, device=device)
    inputs = {"cache": _cache(device, size, count + 1, dtype), "sources": order[:-1].clone(), "to": order[1:].clone()}

    def exact(i: Tensors) -> tuple[torch.Tensor]:
        after = i["cache"].clone()
        after[i["to"]] = i["cache"][i["sources"]]
        return (after,)

    return Launch(
        inputs, lambda i: copy_blocks(i["cache"], i["sources"], i["to"]), exact, ("cache",), equal
    )  # fmt: skip


def start_of_a_layer(device: torch.device, size: Size, tokens: int, dtype: torch.dtype) -> Launch:
    tokens, heads = min(tokens, 100), size.heads + 2 * size.kv_heads
    blocks = tokens // size.page + 2
    inputs = {"residual": randn(device, dtype, tokens, size.hidden), "norm": randn(device, dtype, size.hidden)}
    inputs["weight"] = randn(device, dtype, heads * size.head_dim, size.hidden) / size.hidden**0.5
    inputs["bias"] = randn(device, dtype, heads * size.head_dim)
    inputs |= _angles(device, tokens, size.head_dim, dtype)
    inputs |= {"cache": _cache(device, size, blocks, dtype), "slots": _slots(device, tokens, blocks * size.page)}

    def call(i: Tensors) -> torch.Tensor:
        return fused_qkv(
            i["residual"], i["norm"], i["weight"], i["bias"], i["cos"], i["sin"], i["cache"], i["slots"], EPS
        )

    def exact(i: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
        y = exact_rms_norm(i["residual"], i["norm"]) @ i["weight"].double().t() + i["bias"].double()
        turned = _turned(y.unflatten(1, (heads, size.head_dim)), i["cos"], i["sin"])
        values = y.unflatten(1, (heads, size.head_dim))[:, -size.kv_heads :]
        kv = torch.stack([turned[:, size.heads : -size.kv_heads], values], 1)
        return turned[:, : size.heads], _stored(i["cache"].double(), kv, i["slots"])

    return Launch(inputs, call, exact, ("cache",), within(4, 2e-2 if dtype != torch.float32 else 1e-4))
