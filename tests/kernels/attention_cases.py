"""Attention written out in float64, and caches to attend to: what the tests of all attention kernels share."""

import math

import torch

from tests.kernels.conftest import DEVICE


def by_hand(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    causal: bool = True,
    window: int = 0,
    scale: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend query [Tq, Hq, D], the end of a sequence, to key and value [Tk, Hkv, D]: one query and one head at a time."""
    num_queries, num_heads, head_dim = query.shape
    num_keys, num_kv_heads = key.shape[:2]
    out = torch.zeros(query.shape, dtype=torch.float64)
    lse = torch.full((num_queries, num_heads), -math.inf, dtype=torch.float64)
    for i in range(num_queries):
        position = num_keys - num_queries + i
        seen = range(max(position - window + 1, 0) if window else 0, position + 1) if causal else range(num_keys)
        if not len(seen):
            continue
        for head in range(num_heads):
            kv_head = head // (num_heads // num_kv_heads)
            k, v = (x[seen.start : seen.stop, kv_head].cpu().double() for x in (key, value))
            scores = k @ query[i, head].cpu().double() * (scale or head_dim**-0.5)
            lse[i, head] = torch.logsumexp(scores, 0)
            out[i, head] = torch.exp(scores - lse[i, head]) @ v
    return out.to(DEVICE), lse.to(DEVICE)


def slack(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> float:
    """What a float32 score may lose: relative to the largest score, and what comes of it in the output."""
    score = float(query.double().norm(dim=-1).max() * key.double().norm(dim=-1).max()) / query.shape[-1] ** 0.5
    eps = torch.finfo(query.dtype).eps
    return float(value.double().abs().max()) * (1e-6 * max(score, 1.0) + eps)


def assert_lse_close(actual: torch.Tensor, exact: torch.Tensor, limit: float = 2e-5) -> None:
    assert torch.equal(actual == -math.inf, exact == -math.inf)
    error = (actual.double() - exact).nan_to_num(nan=0.0).abs()
    assert error.numel() == 0 or (error <= limit * exact.nan_to_num(neginf=0.0).abs().clamp(min=1.0)).all(), error.max()


class Cache:
    """A paged cache for sequences of some lengths: pages in any order, NaN (or the largest number) wherever no token lies."""

    def __init__(
        self,
        lengths: list[int],
        page: int,
        heads: int,
        head_dim: int,
        dtype: torch.dtype,
        seed: int,
        spread: float = 1.0,
    ) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        needed = [-(-length // page) for length in lengths]
        order = torch.randperm(sum(needed) + 2, generator=self.generator).tolist()
        self.tables = torch.full((len(lengths), max([*needed, 1]) + 1), -1, dtype=torch.int32)
        quantized = dtype.itemsize == 1
        self.scales = torch.full((len(order), page, 2, heads), math.nan) if quantized else None
        shape = (len(order), page, 2, heads, head_dim)
        self.kv = torch.full(shape, 127, dtype=dtype) if quantized else torch.full(shape, math.nan, dtype=dtype)
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []
        for i, length in enumerate(lengths):
            pages = [order.pop() for _ in range(needed[i])]
            self.tables[i, : len(pages)] = torch.tensor(pages, dtype=torch.int32)
            dense = torch.zeros(length, 2, heads, head_dim, dtype=torch.float64)
            for t in range(length):
                place = (pages[t // page], t % page)
                rows = torch.randn(2, heads, head_dim, generator=self.generator, dtype=torch.float64) * spread
                if self.scales is None:
                    stored = rows.to(dtype)
                    dense[t] = stored.double()
                else:
                    scale = (torch.rand(2, heads, generator=self.generator) + 0.1) / 50
                    codes = (rows / scale.double().unsqueeze(-1)).clamp(-127, 127)
                    stored = codes.round().to(dtype) if dtype == torch.int8 else codes.to(dtype)
                    self.scales[place] = scale
                    dense[t] = stored.double() * scale.double().unsqueeze(-1)
                self.kv[place] = stored
            self.keys.append(dense[:, 0].to(DEVICE))
            self.values.append(dense[:, 1].to(DEVICE))
        self.kv, self.tables = self.kv.to(DEVICE), self.tables.to(DEVICE)
        self.scales = None if self.scales is None else self.scales.to(DEVICE)
        self.lengths = torch.tensor(lengths, dtype=torch.int32, device=DEVICE)


def starts(lengths: list[int]) -> torch.Tensor:
    """Cumulative lengths from 0, [S + 1] int32."""
    return torch.tensor([0, *lengths], device=DEVICE).cumsum(0).to(torch.int32)
