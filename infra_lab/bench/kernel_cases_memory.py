"""The kernels that move memory and compute little, at tensors larger than any cache."""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from infra_lab.bench.kernel_case import Case, Peer
from kernels import activations, embedding, merge, norms, quantize, rotary, sampling, softmax, sort
from kernels.cost import Cost
from kernels.kv_store import kv_store, kv_store_cost, kv_store_reference

ASKED = 0.9
EPS = 1e-5
BF16 = torch.bfloat16


def memory_cases(device: torch.device, *, tiny: bool) -> Iterator[Case]:
    """Yield the cases, one at a time: the tensors of a group are gone before the next group's are made."""
    yield from _row_cases(device, *((4, 64) if tiny else (16_384, 4096)))
    yield from _gate_cases(device, *((4, 56) if tiny else (8192, 14_336)))
    yield from _layout_cases(device, tiny=tiny)
    yield from _vocabulary_cases(device, tiny=tiny)
    yield from _merge_cases(device, *((3, 5, 2, 16) if tiny else (8, 1024, 32, 128)))


def _random(device: torch.device, *shape: int) -> torch.Tensor:
    return torch.randn(shape, device=device, dtype=BF16)


def _peers(reference: Callable[..., Any], *arguments: Any) -> tuple[Peer, Peer]:
    compiled = torch.compile(reference)
    return (
        Peer("torch eager", lambda: reference(*arguments)),
        Peer("torch.compile", lambda: compiled(*arguments), is_anywhere=False),
    )


def _row_cases(device: torch.device, tokens: int, hidden: int) -> Iterator[Case]:
    """What goes over each row once."""
    x, residual = _random(device, tokens, hidden), _random(device, tokens, hidden)
    weight, bias = _random(device, hidden), _random(device, hidden)
    size = f"{tokens} × {hidden} bf16"

    def add_then_norm(x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return norms.rms_norm_reference(residual.add_(x), weight, EPS)

    def case(
        name: str,
        ours: Callable[..., Any],
        reference: Callable[..., Any],
        cost: Callable[[int, int, int], Cost],
        *arguments: Any,
    ) -> Case:
        peers = _peers(reference, *arguments)
        return Case(name, size, lambda: ours(*arguments), cost(tokens, hidden, 2), "copy", ASKED, peers, name)

    yield case("rms_norm", norms.rms_norm, norms.rms_norm_reference, norms.rms_norm_cost, x, weight, EPS)
    yield case("layer_norm", norms.layer_norm, norms.layer_norm_reference, norms.layer_norm_cost, x, weight, bias, EPS)
    yield Case(
        "add_rms_norm",
        size,
        lambda: norms.add_rms_norm(x, residual, weight, EPS),
        norms.add_rms_norm_cost(tokens, hidden, 2),
        "copy",
        ASKED,
        tuple(peer._replace(is_anywhere=False) for peer in _peers(add_then_norm, x, residual.clone())),  # it sums up
        "add_rms_norm",
    )
    yield case("softmax", softmax.softmax, softmax.softmax_reference, softmax.softmax_cost, x)
    q = quantize
    yield case("quantize_int8", q.quantize_int8, q.quantize_int8_reference, q.quantize_cost, x)
    yield case("quantize_fp8", q.quantize_fp8, q.quantize_fp8_reference, q.quantize_cost, x)


def _gate_cases(device: torch.device, tokens: int, columns: int) -> Iterator[Case]:
    """The gates of an MLP."""
    gate_up = _random(device, tokens, 2 * columns)
    size, a = f"{tokens} × {columns} bf16", activations
    peers = _peers(a.silu_mul_reference, gate_up)
    cost = a.silu_mul_cost(tokens, columns, 2)
    yield Case("silu_mul", size, lambda: a.silu_mul(gate_up), cost, "copy", ASKED, peers, "silu_mul")
    peers = _peers(a.gelu_mul_reference, gate_up)
    cost = a.gelu_mul_cost(tokens, columns, 2)
    yield Case("gelu_mul", size, lambda: a.gelu_mul(gate_up), cost, "copy", ASKED, peers, "gelu_mul_tanh")


def _layout_cases(device: torch.device, *, tiny: bool) -> Iterator[Case]:
    """Rows that are turned, stored and looked up."""
    tokens, num_heads, num_kv_heads, head_dim, block = (8, 4, 2, 16, 4) if tiny else (16_384, 32, 8, 128, 16)
    heads = _random(device, tokens, num_heads + num_kv_heads, head_dim)
    angles = torch.rand(tokens, 1, head_dim // 2, device=device) * 6.28
    cos = torch.cat([angles.cos()] * 2, dim=-1).to(BF16)
    sin = torch.cat([-angles.sin(), angles.sin()], dim=-1).to(BF16)
    yield Case(
        "rotary",
        f"{tokens} × {num_heads + num_kv_heads} heads of {head_dim}",
        lambda: rotary.apply_rotary(heads, cos, sin),
        rotary.apply_rotary_cost(tokens, num_heads + num_kv_heads, head_dim, 2),
        "copy",
        ASKED,
        _peers(rotary.apply_rotary_reference, heads, cos, sin),
        "rotary",
    )
    cache = torch.zeros(2 * tokens // block, block, 2, num_kv_heads, head_dim, device=device, dtype=BF16)
    key, value = heads[:, :num_kv_heads], heads[:, num_kv_heads : 2 * num_kv_heads]
    slots = torch.randperm(2 * tokens, device=device)[:tokens]
    yield Case(
        "kv_store",
        f"{tokens} tokens, {num_kv_heads} heads of {head_dim}",
        lambda: kv_store(cache, key, value, slots),
        kv_store_cost(tokens, num_kv_heads, head_dim, 2),
        "copy",
        ASKED,
        _peers(kv_store_reference, cache, key, value, slots),
        "kv_store",
    )
    vocabulary, hidden = (50, 64) if tiny else (128_256, 4096)
    table = _random(device, vocabulary, hidden)
    token_ids = torch.randint(vocabulary, (tokens,), device=device)
    yield Case(
        "embedding",
        f"{tokens} rows of {hidden} bf16",
        lambda: embedding.embedding(table, token_ids),
        embedding.embedding_cost(tokens, hidden, 2),
        "copy",
        ASKED,
        _peers(embedding.embedding_reference, table, token_ids),
        "embedding",
    )


def _by_sorting(
    logits: torch.Tensor, temperature: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, min_p: torch.Tensor
) -> torch.Tensor:
    """Sample as engines do without a kernel of their own: one sort in float32, and no look at the data from the host."""
    ordered, order = (logits / temperature[:, None]).sort(dim=-1, descending=True)
    ranks = torch.arange(logits.shape[1], device=logits.device)
    weights = ordered.masked_fill(ranks >= top_k[:, None], -torch.inf).softmax(dim=-1)
    keeps = (weights.cumsum(dim=-1) - weights < top_p[:, None]) & (weights >= min_p[:, None] * weights[:, :1])
    drawn = (weights * keeps / torch.empty_like(weights).exponential_()).argmax(dim=-1, keepdim=True)  # Gumbel's trick
    return order.gather(1, drawn).squeeze(1)


def _vocabulary_cases(device: torch.device, *, tiny: bool) -> Iterator[Case]:
    """From logits to tokens."""
    rows, vocabulary = (3, 500) if tiny else (256, 151_936)
    logits = torch.randn(rows, vocabulary, device=device) * 4
    floats = torch.full((rows,), 0.9, device=device)
    integers = torch.arange(rows, device=device)
    parameters = (floats, torch.full_like(floats, 50, dtype=torch.int32), floats, torch.full_like(floats, 0.01))
    yield Case(
        "sampling",
        f"{rows} × {vocabulary} fp32, top-k 50, top-p 0.9, min-p 0.01",
        lambda: sampling.sample(logits, *parameters, integers, integers),
        sampling.sample_cost(rows, vocabulary, 4),
        "copy",
        None,
        (Peer("torch, by sorting", lambda: _by_sorting(logits, *parameters), 5.0),),
    )
    k = 8
    yield Case(
        "top_k",
        f"the {k} largest of {rows} × {vocabulary} fp32",
        lambda: sort.top_k(logits, k),
        sort.top_k_cost(rows, vocabulary, k, 4),
        "copy",
        None,
        (Peer("torch.topk", lambda: torch.topk(logits, k)),),
    )


def _merge_cases(device: torch.device, parts: int, tokens: int, num_heads: int, head_dim: int) -> Iterator[Case]:
    """Attention to several sets of keys becomes one."""
    outs = torch.randn(parts, tokens, num_heads, head_dim, device=device)
    log_sum_exps = torch.randn(parts, tokens, num_heads, device=device)
    yield Case(
        "merge_attention",
        f"{parts} parts of {tokens} × {num_heads} heads of {head_dim}, fp32",
        lambda: merge.merge_attention(outs, log_sum_exps),
        merge.merge_attention_cost(parts, tokens, num_heads, head_dim, 4),
        "copy",
        ASKED,
        _peers(merge.merge_attention_reference, outs, log_sum_exps),
    )
