"""What goes over rows: norms, softmax, gates, embedding, quantization, top-k."""

import math
from collections.abc import Callable
from typing import Any

import torch

from kernels import activations, embedding, norms, quantize, softmax, sort
from tests.kernels.conftest import assert_close
from tests.kernels.launches.launch import EPS, Launch, Size, Tensors, equal, randn, within


def rms_norm(device: torch.device, size: Size, tokens: int, dtype: torch.dtype) -> Launch:
    inputs = {"x": randn(device, dtype, tokens, size.hidden), "weight": randn(device, dtype, size.hidden)}
    return Launch(inputs, lambda i: norms.rms_norm(i["x"], i["weight"], EPS), lambda i: (exact_rms_norm(**i),))


def exact_rms_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    x = x.double()
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * weight.double()


def add_rms_norm(device: torch.device, size: Size, tokens: int, dtype: torch.dtype) -> Launch:
    inputs = {name: randn(device, dtype, tokens, size.hidden) for name in ("x", "residual")}
    inputs["weight"] = randn(device, dtype, size.hidden)

    def exact(i: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
        total = (i["x"].double() + i["residual"].double()).to(dtype)
        return exact_rms_norm(total, i["weight"]), total.double()

    return Launch(
        inputs, lambda i: norms.add_rms_norm(i["x"], i["residual"], i["weight"], EPS), exact, ("residual",)
    )  # fmt: skip


def layer_norm(device: torch.device, size: Size, tokens: int, dtype: torch.dtype) -> Launch:
    inputs = {"x": randn(device, dtype, tokens, size.hidden)}
    inputs |= {name: randn(device, dtype, size.hidden) for name in ("weight", "bias")}

    def exact(i: Tensors) -> tuple[torch.Tensor]:
        x = i["x"].double()
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + EPS).sqrt()
        return (scaled * i["weight"].double() + i["bias"].double(),)

    return Launch(inputs, lambda i: norms.layer_norm(i["x"], i["weight"], i["bias"], EPS), exact, check=within(8))


def softmax_rows(device: torch.device, size: Size, tokens: int, dtype: torch.dtype) -> Launch:
    inputs = {"x": randn(device, dtype, tokens, size.hidden) * 4}
    return Launch(inputs, lambda i: softmax.softmax(i["x"]), lambda i: (torch.softmax(i["x"].double(), -1),))


def softmax_long_rows(device: torch.device, size: Size, tokens: int, dtype: torch.dtype) -> Launch:
    """Rows that the registers do not hold, whatever the vocabulary."""
    width = max(size.vocabulary, softmax.MAX_COLUMNS_IN_REGISTERS + 7)
    inputs = {"x": randn(device, dtype, min(tokens, 64), width) * 4}
    return Launch(inputs, lambda i: softmax.softmax(i["x"]), lambda i: (torch.softmax(i["x"].double(), -1),))


def silu_mul(device: torch.device, size: Size, tokens: int, dtype: torch.dtype) -> Launch:
    def exact(i: Tensors) -> tuple[torch.Tensor]:
        gate, up = i["gate_up"].double().chunk(2, -1)
        return (gate / (1 + torch.exp(-gate)) * up,)

    inputs = {"gate_up": randn(device, dtype, tokens, 2 * size.width) * 3}
    return Launch(inputs, lambda i: activations.silu_mul(i["gate_up"]), exact)


def gelu_mul(device: torch.device, size: Size, tokens: int, dtype: torch.dtype) -> Launch:
    def exact(i: Tensors) -> tuple[torch.Tensor]:
        gate, up = i["gate_up"].double().chunk(2, -1)
        return (gate / 2 * (1 + torch.tanh((2 / math.pi) ** 0.5 * (gate + 0.044715 * gate**3))) * up,)

    inputs = {"gate_up": randn(device, dtype, tokens, 2 * size.width) * 3}
    return Launch(inputs, lambda i: activations.gelu_mul(i["gate_up"]), exact)


def embedding_rows(device: torch.device, size: Size, tokens: int, dtype: torch.dtype) -> Launch:
    table = randn(device, dtype, min(size.vocabulary, 20_000), size.hidden)
    ids = torch.randint(-1, table.shape[0] + 1, (tokens,), device=device)  # one too low and one too high among them

    def exact(i: Tensors) -> tuple[torch.Tensor]:
        known = (i["ids"] >= 0) & (i["ids"] < len(i["table"]))
        return (i["table"][i["ids"].where(known, 0)] * known[:, None],)

    return Launch({"table": table, "ids": ids}, lambda i: embedding.embedding(i["table"], i["ids"]), exact)


def quantize_int8(device: torch.device, size: Size, tokens: int, dtype: torch.dtype) -> Launch:
    return _quantized(device, size.hidden, tokens, dtype, quantize.quantize_int8, lambda x, scale: 0.501 * scale)


def quantize_int8_long_rows(device: torch.device, size: Size, tokens: int, dtype: torch.dtype) -> Launch:
    width = max(size.vocabulary, quantize.MAX_COLUMNS_IN_REGISTERS + 7)
    return _quantized(device, width, min(tokens, 64), dtype, quantize.quantize_int8, lambda x, scale: 0.501 * scale)


def quantize_fp8(device: torch.device, size: Size, tokens: int, dtype: torch.dtype) -> Launch:
    """Half a step: 1/16 of the number, or of the smallest normal one, 2^-6."""
    return _quantized(
        device, size.hidden, tokens, dtype, quantize.quantize_fp8,
        lambda x, scale: torch.maximum(x.abs(), 2.0**-6 * scale) * 0.0626,
    )  # fmt: skip


def _quantized(
    device: torch.device, width: int, tokens: int, dtype: torch.dtype, launcher: Callable[..., Any],
    half_step: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> Launch:  # fmt: skip
    """The scale follows from the largest of a row, and no value is further off than half a step."""
    inputs = {"x": randn(device, dtype, tokens, width)}

    def exact(i: Tensors) -> tuple[Any, torch.Tensor]:
        x = i["x"].double()
        limit = 127.0 if launcher is quantize.quantize_int8 else 448.0
        scale = x.abs().amax(-1, keepdim=True) / limit
        return (x, scale, half_step(x, scale)), scale

    def check(actual: torch.Tensor, exact: Any) -> None:
        if isinstance(exact, torch.Tensor):
            assert_close(actual, exact)
            return
        x, scale, allowed = exact
        assert ((actual.double() * scale - x).abs() <= allowed).all()

    return Launch(inputs, lambda i: launcher(i["x"]), exact, check=check)


def top_k(device: torch.device, size: Size, tokens: int, dtype: torch.dtype) -> Launch:
    """In bfloat16 there are many equal ones."""
    k = 20
    inputs = {"x": randn(device, dtype, min(tokens, 256), size.vocabulary)}

    def exact(i: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
        values, indices = torch.sort(i["x"], dim=-1, descending=True, stable=True)
        return values[:, :k].contiguous(), indices[:, :k].contiguous()

    return Launch(inputs, lambda i: sort.top_k(i["x"], k), exact, check=equal)
