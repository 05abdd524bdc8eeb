"""Products: dense, quantized, and those of a mixture of experts."""

import torch

from kernels import matmul, moe, quantized_matmul, w4a16
from tests.kernels.launches.launch import Launch, Size, Tensors, randn, within


def _product(device: torch.device, dtype: torch.dtype, M: int, K: int, N: int) -> Launch:
    return Launch(
        {"a": randn(device, dtype, M, K), "w": randn(device, dtype, N, K)},
        lambda i: matmul.matmul(i["a"], i["w"].t()),
        lambda i: (i["a"].double() @ i["w"].double().t(),),
        check=within(2, 1e-5 * K**0.5),
    )


def product(device: torch.device, size: Size, tokens: int, dtype: torch.dtype) -> Launch:
    return _product(device, dtype, tokens, size.hidden, size.width)


def product_by_rows(device: torch.device, size: Size, tokens: int, dtype: torch.dtype) -> Launch:
    """B as it is, [K, N], and all that may follow."""
    a, b = randn(device, dtype, tokens, size.hidden), randn(device, dtype, size.hidden, size.width)
    extra = {"bias": randn(device, dtype, size.width), "residual": randn(device, dtype, tokens, size.width)}

    def exact(i: Tensors) -> tuple[torch.Tensor]:
        c = i["a"].double() @ i["b"].double() + i["bias"].double()
        return (c / (1 + torch.exp(-c)) + i["residual"].double(),)

    return Launch(
        {"a": a, "b": b, **extra},
        lambda i: matmul.matmul(i["a"], i["b"], i["bias"], "silu", i["residual"]),
        exact,
        check=within(2, 1e-5 * size.hidden**0.5),
    )


def product_down(device: torch.device, size: Size, tokens: int, dtype: torch.dtype) -> Launch:
    """A long sum and few rows, as in decoding: split over K where the size allows."""
    return _product(device, dtype, min(tokens, 24), size.width, size.hidden)


def _scaled(
    device: torch.device, size: Size, tokens: int, dtype: torch.dtype, operand: torch.dtype, slack: float
) -> Launch:
    """K a multiple of 16, as it always is, so that nothing has to be copied."""
    k = max(size.hidden // 16 * 16, 16)
    a, w = (torch.randn(rows, k, device=device) * 25 for rows in (tokens, size.width))
    inputs = {"a": a.clamp(-127, 127).to(operand), "w": w.clamp(-127, 127).to(operand)}
    inputs |= {"rows": torch.rand(tokens, device=device) / 50, "columns": torch.rand(size.width, device=device) / 50}
    inputs["bias"] = randn(device, dtype, size.width)

    def call(i: Tensors) -> torch.Tensor:
        return quantized_matmul.scaled_matmul(i["a"], i["w"].t(), i["rows"], i["columns"], i["bias"], dtype)

    def exact(i: Tensors) -> tuple[torch.Tensor]:
        total = i["a"].double() @ i["w"].double().t()
        return (total * i["rows"].double()[:, None] * i["columns"].double() + i["bias"].double(),)

    return Launch(inputs, call, exact, check=within(2, slack * k**0.5))


def product_int8(device: torch.device, size: Size, tokens: int, dtype: torch.dtype) -> Launch:
    return _scaled(device, size, tokens, dtype, torch.int8, 1e-6)


def product_fp8(device: torch.device, size: Size, tokens: int, dtype: torch.dtype) -> Launch:
    """Hopper keeps some 14 bits of a sum: 2^-13 of the largest that may come up in it."""
    return _scaled(device, size, tokens, dtype, torch.float8_e4m3fn, 2.0**-13 * 4)


def product_w4(device: torch.device, size: Size, tokens: int, dtype: torch.dtype) -> Launch:
    dtype, half = (torch.bfloat16 if dtype == torch.float32 else dtype), size.group // 2
    k = max(size.hidden // size.group, 1) * size.group
    inputs = {"x": randn(device, dtype, tokens, k)}
    inputs["packed"] = torch.randint(0, 256, (size.width, k // 2), device=device, dtype=torch.uint8)
    inputs["scale"] = (torch.rand(k // size.group, size.width, device=device) / 10).to(dtype)
    inputs["zero"] = torch.randint(0, 16, inputs["scale"].shape, device=device, dtype=torch.uint8)

    def exact(i: Tensors) -> tuple[torch.Tensor]:
        packed = i["packed"].unflatten(1, (-1, half))  # [N, groups, G / 2]
        q = torch.cat([packed % 16, packed // 16], -1).double()
        weight = (q - i["zero"].t()[..., None].double()) * i["scale"].t()[..., None].double()
        return (i["x"].double() @ weight.flatten(1).t(),)

    def call(i: Tensors) -> torch.Tensor:
        return w4a16.w4a16_matmul(i["x"], i["packed"], i["scale"], i["zero"])

    return Launch(inputs, call, exact, check=within(2, 1e-4))


def experts(device: torch.device, size: Size, tokens: int, dtype: torch.dtype) -> Launch:
    """One expert of another GPU among them."""
    top, width = min(4, size.experts), size.width // 8
    inputs = {"x": randn(device, dtype, tokens, size.hidden)}
    inputs["gate_up"] = randn(device, dtype, size.experts, 2 * width, size.hidden) / size.hidden**0.5
    inputs["down"] = randn(device, dtype, size.experts, size.hidden, width) / width**0.5
    inputs["ids"] = torch.rand(tokens, size.experts + 1, device=device).topk(top).indices
    inputs["weights"] = torch.rand(tokens, top, device=device)

    def call(i: Tensors) -> torch.Tensor:
        return moe.moe(i["x"], i["gate_up"], i["down"], i["ids"], i["weights"])

    def exact(i: Tensors) -> tuple[torch.Tensor]:
        y = torch.zeros(i["x"].shape, dtype=torch.float64, device=device)
        for expert in range(size.experts):
            tokens_of, choices = (i["ids"] == expert).nonzero(as_tuple=True)
            gate, up = (i["x"][tokens_of].double() @ i["gate_up"][expert].double().t()).chunk(2, -1)
            out = (gate / (1 + torch.exp(-gate)) * up) @ i["down"][expert].double().t()
            y.index_add_(0, tokens_of, out * i["weights"][tokens_of, choices].double()[:, None])
        return (y,)

    return Launch(inputs, call, exact, check=within(4, 1e-5))
