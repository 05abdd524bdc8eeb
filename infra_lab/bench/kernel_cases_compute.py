"""The kernels that live on matrix products: products themselves, quantized ones, and attention."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from infra_lab.bench.kernel_case import Case, Peer
from kernels import flash_attention, matmul, moe, norms, paged_decode, quantized_matmul, w4a16
from kernels.attention import paged_attention_cost
from kernels.cost import Cost
from kernels.fused_qkv import fused_qkv, fused_qkv_cost
from kernels.kv_store import kv_store
from kernels.operands import can_copy_tiles
from kernels.rotary import rotary_

BF16, FP8 = torch.bfloat16, torch.float8_e4m3fn


def compute_cases(device: torch.device, *, tiny: bool) -> Iterator[Case]:
    """Yield the cases, one at a time."""
    for size in (32,) if tiny else (4096, 8192):
        yield from _products(device, size, tiny=tiny)
    yield from _few_rows(device, tiny=tiny)
    yield from _experts(device, tiny=tiny)
    for length in (24,) if tiny else (4096, 16_384):
        yield from _prefill(device, length, tiny=tiny)
    yield from _decode(device, tiny=tiny)


def _products(device: torch.device, size: int, *, tiny: bool) -> Iterator[Case]:
    """Large products: what they reach of the chip's arithmetic, and what the vendor's library does."""
    a, weight = (torch.randn(size, size, device=device, dtype=BF16) for _ in range(2))
    ones = torch.ones(size, device=device)
    shape = f"{size} × {size} × {size}"
    yield Case(
        "matmul bf16",
        shape,
        lambda: matmul.matmul(a, weight.t()),
        matmul.matmul_cost(size, size, size, 2),
        "bfloat16",
        None,
        (Peer("cuBLAS", lambda: F.linear(a, weight), 0.9),),
        "matmul_persistent" if can_copy_tiles(a) else "matmul",
    )
    ai, bi = (torch.randint(-127, 128, (size, size), device=device, dtype=torch.int8) for _ in range(2))
    yield Case(
        "matmul int8",
        shape,
        lambda: quantized_matmul.scaled_matmul(ai, bi.t(), ones, ones),
        quantized_matmul.scaled_matmul_cost(size, size, size, 2),
        "int8",
        None,
        (Peer("torch._int_mm", lambda: torch._int_mm(ai, bi.t()).to(BF16), 0.9),),
        "int8_matmul",
    )
    if tiny:  # the interpreter has no FP8 products worth waiting for
        return
    a8, b8 = a.to(FP8), weight.to(FP8).t()

    def scaled_mm() -> torch.Tensor:  # its sums are as ours
        return torch._scaled_mm(a8, b8, ones[:, None], ones[None, :], out_dtype=BF16, use_fast_accum=True)

    yield Case(
        "matmul fp8",
        shape,
        lambda: quantized_matmul.scaled_matmul(a8, b8, ones, ones),
        quantized_matmul.scaled_matmul_cost(size, size, size, 2),
        "float8",
        None,
        (Peer("torch._scaled_mm", scaled_mm, 0.9, is_anywhere=False),),
        "fp8_matmul",
    )


def _few_rows(device: torch.device, *, tiny: bool) -> Iterator[Case]:
    """Products of a decode step: the weights are all there is to move."""
    N, K, group = (64, 128, 32) if tiny else (4096, 14_336, 128)
    weight = torch.randn(N, K, device=device, dtype=BF16)
    packed = w4a16.pack_w4(torch.randint(0, 16, (N, K), device=device, dtype=torch.uint8), group)
    scale = torch.rand(K // group, N, device=device, dtype=BF16)
    zero = torch.full((K // group, N), 8, device=device, dtype=torch.uint8)

    def w4a16_case(rows: int) -> Case:
        x = torch.randn(rows, K, device=device, dtype=BF16)
        return Case(
            "w4a16",
            f"{rows} × {K} × {N}, groups of {group}",
            lambda: w4a16.w4a16_matmul(x, packed, scale, zero),
            w4a16.w4a16_matmul_cost(rows, N, K, group),
            "copy",
            None,
            (
                Peer("cuBLAS bf16", lambda: F.linear(x, weight), 2.5, is_anywhere=False),
            ),  # other numbers, of as many weights
            "w4a16_matmul_parts",
        )

    yield w4a16_case(1)
    yield w4a16_case(16)
    hidden, num_heads, num_kv_heads, head_dim, rows = (64, 4, 2, 16, 3) if tiny else (4096, 32, 8, 128, 16)
    residual = torch.randn(rows, hidden, device=device, dtype=BF16)
    norm = torch.ones(hidden, device=device, dtype=BF16)
    qkv = torch.randn((num_heads + 2 * num_kv_heads) * head_dim, hidden, device=device, dtype=BF16) / hidden**0.5
    cos, sin = (
        torch.ones(rows, 1, head_dim, device=device, dtype=BF16),
        torch.zeros(rows, 1, head_dim, device=device, dtype=BF16),
    )
    cache = torch.zeros(rows, 16, 2, num_kv_heads, head_dim, device=device, dtype=BF16)
    slots = torch.arange(rows, device=device) * 16
    arguments = (residual, norm, qkv, None, cos, sin, cache, slots, 1e-5)
    sizes = [num_heads, num_kv_heads, num_kv_heads]

    def unfused() -> torch.Tensor:
        heads = F.linear(norms.rms_norm(residual, norm, 1e-5), qkv).view(rows, sum(sizes), head_dim)
        query, key, value = torch.split(heads, sizes, dim=1)
        rotary_(query, key, cos, sin)
        kv_store(cache, key, value, slots)
        return query

    yield Case(
        "fused_qkv",
        f"{rows} × {hidden}, {num_heads} + 2 × {num_kv_heads} heads of {head_dim}",
        lambda: fused_qkv(*arguments),
        fused_qkv_cost(rows, hidden, num_heads, num_kv_heads, head_dim, 2),
        "copy",
        None,
        (Peer("cuBLAS and three kernels", unfused, 1.0),),
        "fused_qkv",
    )


def _experts(device: torch.device, *, tiny: bool) -> Iterator[Case]:
    """The experts of a layer of Qwen3-30B-A3B."""
    tokens, num_experts, top_k, hidden, width = (6, 4, 2, 32, 16) if tiny else (4096, 128, 8, 2048, 768)
    x = torch.randn(tokens, hidden, device=device, dtype=BF16)
    gate_up = torch.randn(num_experts, 2 * width, hidden, device=device, dtype=BF16) / hidden**0.5
    down = torch.randn(num_experts, hidden, width, device=device, dtype=BF16) / width**0.5
    weights, ids = torch.rand(tokens, num_experts, device=device).topk(top_k)
    slots = tokens * top_k
    costs = (
        moe.grouped_matmul_cost(slots, tokens, 2 * width, hidden, num_experts, 2),
        moe.grouped_matmul_cost(slots, slots, hidden, width, num_experts, 2),
    )
    yield Case(
        "moe",
        f"{tokens} tokens × {hidden}, {top_k} of {num_experts} experts of {width}",
        lambda: moe.moe(x, gate_up, down, ids, weights),
        Cost(*map(sum, zip(*costs, strict=True))),
        "bfloat16",
        None,
        (Peer("torch, expert by expert", lambda: moe.moe_reference(x, gate_up, down, ids, weights), 1.0),),
    )


def _prefill(device: torch.device, length: int, *, tiny: bool) -> Iterator[Case]:
    """One causal prompt, heads of 128."""
    num_heads, num_kv_heads, head_dim = (2, 1, 16) if tiny else (32, 8, 128)
    query = torch.randn(length, num_heads, head_dim, device=device, dtype=BF16)
    key, value = (torch.randn(length, num_kv_heads, head_dim, device=device, dtype=BF16) for _ in range(2))
    starts = torch.tensor([0, length], device=device, dtype=torch.int32)
    q, k, v = (x.transpose(0, 1)[None] for x in (query, key, value))  # [1, H, T, D]

    def sdpa(backend: SDPBackend) -> Callable[[], torch.Tensor]:
        def run() -> torch.Tensor:
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)[0].transpose(0, 1)

        return run

    yield Case(
        "prefill attention",
        f"{length} tokens, {num_heads} / {num_kv_heads} heads of {head_dim}, causal",
        lambda: flash_attention.flash_attention(query, key, value, starts, starts, length),
        paged_attention_cost([length], [length], num_heads, num_kv_heads, head_dim, 2),
        "bfloat16",
        None,
        (
            Peer("SDPA, math", sdpa(SDPBackend.MATH))
            if tiny
            else Peer("SDPA, cuDNN", sdpa(SDPBackend.CUDNN_ATTENTION), 0.8),
            Peer("SDPA, FlashAttention", sdpa(SDPBackend.FLASH_ATTENTION), 1.0, is_anywhere=False),
        ),
        "flash_attention",
    )


def _decode(device: torch.device, *, tiny: bool) -> Iterator[Case]:
    """One token for each of many sequences over the paged cache."""
    batch, context, num_heads, num_kv_heads, head_dim, block = (
        (2, 24, 4, 2, 16, 8) if tiny else (64, 4096, 32, 8, 128, 16)
    )
    blocks = context // block
    cache = torch.randn(batch * blocks, block, 2, num_kv_heads, head_dim, device=device, dtype=BF16)
    tables = torch.randperm(batch * blocks, device=device, dtype=torch.int32).view(batch, blocks)
    lengths = torch.full((batch,), context, device=device, dtype=torch.int32)
    query = torch.randn(batch, num_heads, head_dim, device=device, dtype=BF16)

    def gathered() -> Any:
        kv = cache[tables.long()].flatten(1, 2)  # [S, context, 2, Hkv, D]
        key, value = (kv[:, :, i].transpose(1, 2) for i in (0, 1))
        return F.scaled_dot_product_attention(query[:, :, None], key, value, enable_gqa=True)[:, :, 0]

    yield Case(
        "paged decode",
        f"{batch} sequences of {context}, {num_heads} / {num_kv_heads} heads of {head_dim}",
        lambda: paged_decode.paged_decode(query, cache, lengths, tables, context),
        paged_attention_cost([1] * batch, [context] * batch, num_heads, num_kv_heads, head_dim, 2),
        "copy",
        0.85,
        (Peer("gather and SDPA", gathered, 1.0),),
        "paged_decode",
    )
