"""Attention: prompts, chunks, decodes, and the merging of parts."""

import math
from collections.abc import Callable

import torch

from kernels import flash_attention, merge, paged_decode
from tests.kernels.launches.launch import Launch, Size, Tensors, randn, within


def _attended(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """The end [Tq, Hq, D] of a sequence with keys and values [Tk, Hkv, D]: what it sees, and the log-sum-exp."""
    group = query.shape[1] // key.shape[1]
    key, value = (x.double().repeat_interleave(group, 1).transpose(0, 1) for x in (key, value))  # [Hq, Tk, D]
    scores = query.double().transpose(0, 1) @ key.transpose(1, 2) * query.shape[2] ** -0.5
    distance = torch.arange(len(key[0]) - len(query), len(key[0]), device=query.device)[:, None]
    distance = distance - torch.arange(len(key[0]), device=query.device)
    scores.masked_fill_((distance < 0) | ((distance >= window) if window else False), -math.inf)
    return (scores.softmax(-1) @ value).transpose(0, 1), scores.logsumexp(-1).t()


def _of_length(total: int, parts: int) -> list[int]:
    """Unequal lengths with this sum."""
    lengths = [max(total * (i + 1) // (parts * (parts + 1) // 2), 1) for i in range(parts - 1)]
    return [*lengths, max(total - sum(lengths), 1)]


def flash_dense(device: torch.device, size: Size, tokens: int, dtype: torch.dtype, window: int = 0) -> Launch:
    """Three prompts behind each other."""
    lengths = _of_length(tokens, 3)
    total, starts = sum(lengths), torch.tensor([0, *lengths]).cumsum(0)
    inputs = {"q": randn(device, dtype, total, size.heads, size.head_dim)}
    inputs |= {name: randn(device, dtype, total, size.kv_heads, size.head_dim) for name in "kv"}
    inputs |= {"starts": starts.to(device, torch.int32), "lse": torch.zeros(total, size.heads, device=device)}

    def call(i: Tensors) -> torch.Tensor:
        return flash_attention.flash_attention(
            i["q"], i["k"], i["v"], i["starts"], i["starts"], max(lengths), log_sum_exp=i["lse"], window=window
        )

    def exact(i: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
        parts = [x.split(lengths) for x in (i["q"], i["k"], i["v"])]
        outs = [_attended(*part, window=window) for part in zip(*parts, strict=True)]
        return torch.cat([out for out, _ in outs]), torch.cat([lse for _, lse in outs])

    return Launch(inputs, call, exact, ("lse",), within(4, 2e-3 if dtype != torch.float32 else 2e-5))


def flash_window(device: torch.device, size: Size, tokens: int, dtype: torch.dtype) -> Launch:
    return flash_dense(device, size, tokens, dtype, window=max(size.context // 10, 3))


def _paged(
    device: torch.device, size: Size, lengths: list[int], dtype: torch.dtype, kv: torch.dtype | None = None
) -> tuple[Tensors, Callable[[Tensors, int], tuple[torch.Tensor, torch.Tensor]]]:
    """A cache with pages in any order, and what finds a sequence's keys and values in it again."""
    pages = [-(-length // size.page) for length in lengths]
    tables = torch.full((len(lengths), max(pages)), -1, device=device, dtype=torch.int32)
    order = torch.randperm(sum(pages), device=device, dtype=torch.int32)
    for row, part in zip(tables, order.split(pages), strict=True):
        row[: len(part)] = part
    shape = (sum(pages), size.page, 2, size.kv_heads, size.head_dim)
    inputs = {"tables": tables, "lens": torch.tensor(lengths, dtype=torch.int32).to(device)}
    if kv is None:
        inputs["cache"] = randn(device, dtype, *shape)
    else:
        inputs["cache"] = (torch.randn(shape, device=device) * 30).clamp(-127, 127).to(kv)
        inputs["scales"] = torch.rand(shape[:4], device=device) / 20

    def keys(i: Tensors, sequence: int) -> tuple[torch.Tensor, torch.Tensor]:
        pages_of = i["tables"][sequence, : pages[sequence]].long()
        rows = i["cache"][pages_of].double().flatten(0, 1)[: lengths[sequence]]
        if "scales" in i:
            rows = rows * i["scales"][pages_of].double().flatten(0, 1)[: lengths[sequence], ..., None]
        return rows[:, 0], rows[:, 1]

    return inputs, keys


def flash_paged(device: torch.device, size: Size, tokens: int, dtype: torch.dtype) -> Launch:
    """Two chunks, each behind keys that were there before."""
    queries = _of_length(tokens, 2)
    lengths = [queries[0] + size.context // 3, queries[1] + 1]
    inputs, keys = _paged(device, size, lengths, dtype)
    inputs["q"] = randn(device, dtype, sum(queries), size.heads, size.head_dim)
    inputs["starts"] = torch.tensor([0, *queries]).cumsum(0).to(device, torch.int32)

    def call(i: Tensors) -> torch.Tensor:
        return flash_attention.paged_flash_attention(
            i["q"], i["cache"], i["starts"], i["lens"], i["tables"], max(queries)
        )

    def exact(i: Tensors) -> tuple[torch.Tensor]:
        parts = i["q"].split(queries)
        return (torch.cat([_attended(part, *keys(i, n))[0] for n, part in enumerate(parts)]),)

    return Launch(inputs, call, exact, check=within(4, 2e-3 if dtype != torch.float32 else 2e-5))


def decode(device: torch.device, size: Size, tokens: int, dtype: torch.dtype, kv: torch.dtype | None = None) -> Launch:
    """Sequences of all lengths up to the context."""
    batch = min(tokens, 64)
    lengths = [max(size.context * (i + 1) // batch, 1) for i in range(batch)]
    inputs, keys = _paged(device, size, lengths, dtype, kv)
    inputs["q"] = randn(device, dtype, batch, size.heads, size.head_dim)
    inputs["lse"] = torch.zeros(batch, size.heads, device=device)

    def call(i: Tensors) -> torch.Tensor:
        return paged_decode.paged_decode(
            i["q"], i["cache"], i["lens"], i["tables"], max(lengths), i.get("scales"), i["lse"]
        )

    def exact(i: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
        outs = [_attended(i["q"][n : n + 1], *keys(i, n)) for n in range(batch)]
        return torch.cat([out for out, _ in outs]), torch.cat([lse for _, lse in outs])

    return Launch(inputs, call, exact, ("lse",), within(4, 4e-3 if dtype != torch.float32 else 2e-5))


def decode_int8(device: torch.device, size: Size, tokens: int, dtype: torch.dtype) -> Launch:
    return decode(device, size, tokens, dtype, torch.int8)


def decode_fp8(device: torch.device, size: Size, tokens: int, dtype: torch.dtype) -> Launch:
    return decode(device, size, tokens, dtype, torch.float8_e4m3fn)


def merge_parts(device: torch.device, size: Size, tokens: int, dtype: torch.dtype) -> Launch:
    parts = 5
    inputs = {"outs": randn(device, dtype, parts, tokens, size.heads, size.head_dim)}
    inputs["lses"] = torch.randn(parts, tokens, size.heads, device=device) * 3

    def exact(i: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
        weights = i["lses"].double().softmax(0)
        return (weights.unsqueeze(-1) * i["outs"].double()).sum(0), i["lses"].double().logsumexp(0)

    return Launch(
        inputs, lambda i: merge.merge_attention(i["outs"], i["lses"]), exact, check=within(4, 1e-5)
    )  # fmt: skip
