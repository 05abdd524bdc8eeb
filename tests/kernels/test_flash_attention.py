"""Prefill attention against attention by hand in float64: any lengths, heads, layout, window, dtype, tile."""

import math
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kernels
from kernels.flash_attention import flash_attention, flash_attention_cost, paged_flash_attention
from kernels.spec import KernelConfig
from tests.kernels.attention_cases import Cache, assert_lse_close, by_hand, slack, starts
from tests.kernels.conftest import DEVICE, assert_close, poisoned

FLOATS = [torch.float32, torch.bfloat16, torch.float16]
LENGTHS = st.lists(
    st.tuples(st.integers(0, 21), st.integers(-3, 40)), min_size=0, max_size=3
)  # queries, keys before them
HEADS = st.sampled_from([(1, 1), (4, 2), (3, 1), (5, 1)])
TILES = st.sampled_from([(16, 16), (32, 16), (16, 32)])
MODES = st.sampled_from(["triton", "triton", "reference"])


def tiles(block_m: int, block_n: int):  # type: ignore[no-untyped-def]
    """Launch with small tiles, so that small shapes have many."""
    config = KernelConfig({"BLOCK_M": block_m, "BLOCK_N": block_n}, num_warps=4, num_stages=2)
    return patch("kernels.flash_attention.launch_config", lambda *_: config)


def normal(
    *shape: int, seed: int, dtype: torch.dtype = torch.float32, spread: float = 1.0, gap: int = 0
) -> torch.Tensor:
    """Random heads; rows lie `gap` heads apart, NaN between them."""
    generator = torch.Generator().manual_seed(seed)
    wide = torch.full((shape[0], shape[1] + gap, shape[2]), math.nan, dtype=dtype)
    wide[:, : shape[1]] = (torch.randn(shape, generator=generator, dtype=torch.float64) * spread).to(dtype)
    return wide.to(DEVICE)[:, : shape[1]]


@settings(max_examples=120, deadline=None)
@given(
    LENGTHS, HEADS, st.sampled_from([8, 16, 20]), st.sampled_from(FLOATS), st.booleans(), st.sampled_from([0, 0, 1, 7, 33]),
    st.sampled_from([0.1, 1.0, 30.0]), TILES, MODES, st.integers(0, 2**31),
)  # fmt: skip
def test_dense(
    lengths: list[tuple[int, int]], heads: tuple[int, int], head_dim: int, dtype: torch.dtype, causal: bool, window: int,
    spread: float, tile: tuple[int, int], mode: kernels.dispatch.Mode, seed: int,
) -> None:  # fmt: skip
    query_lens, key_lens = [q for q, _ in lengths], [max(q + before, 0) for q, before in lengths]
    window = window if causal else 0
    query = normal(sum(query_lens), heads[0], head_dim, seed=seed, dtype=dtype, spread=spread, gap=2)
    key = normal(sum(key_lens), heads[1], head_dim, seed=seed + 1, dtype=dtype, gap=1)
    value = normal(sum(key_lens), heads[1], head_dim, seed=seed + 2, dtype=dtype, gap=3)
    lse = torch.full((len(query), heads[0]), math.nan, device=DEVICE)
    query_starts, key_starts = starts(query_lens), starts(key_lens)
    with tiles(*tile), poisoned(), kernels.use(mode):
        out = flash_attention(
            query,
            key,
            value,
            query_starts,
            key_starts,
            max([*query_lens, 0]),
            None,
            None,
            lse,
            causal=causal,
            window=window,
        )
    for i in range(len(lengths)):
        q, k = (slice(int(x[i]), int(x[i + 1])) for x in (query_starts, key_starts))
        exact, exact_lse = by_hand(query[q], key[k], value[k], causal=causal, window=window)
        if q.stop > q.start:
            allowed = slack(query[q], key[k], value[k]) if k.stop > k.start else 0.0
            assert_close(out[q], exact, slack=allowed)
            assert_lse_close(lse[q], exact_lse)


@settings(max_examples=120, deadline=None)
@given(
    LENGTHS, HEADS, st.sampled_from([8, 20]), st.sampled_from(FLOATS), st.sampled_from([None, torch.int8, torch.float8_e4m3fn]),
    st.sampled_from([0, 0, 5]), st.sampled_from([1, 3, 16]), TILES, MODES, st.integers(0, 2**31),
)  # fmt: skip
def test_paged(
    lengths: list[tuple[int, int]], heads: tuple[int, int], head_dim: int, dtype: torch.dtype, quantized: torch.dtype | None,
    window: int, page: int, tile: tuple[int, int], mode: kernels.dispatch.Mode, seed: int,
) -> None:  # fmt: skip
    query_lens, key_lens = [q for q, _ in lengths], [max(q + before, 0) for q, before in lengths]
    cache = Cache(key_lens, page, heads[1], head_dim, quantized or dtype, seed)
    query = normal(sum(query_lens), heads[0], head_dim, seed=seed, dtype=dtype)
    query_starts, lse = starts(query_lens), torch.full((len(query), heads[0]), math.nan, device=DEVICE)
    with tiles(*tile), poisoned(), kernels.use(mode):
        out = paged_flash_attention(
            query,
            cache.kv,
            query_starts,
            cache.lengths,
            cache.tables,
            max([*query_lens, 0]),
            cache.scales,
            lse,
            window=window,
        )
    for i in range(len(lengths)):
        rows = slice(int(query_starts[i]), int(query_starts[i + 1]))
        exact, exact_lse = by_hand(query[rows], cache.keys[i], cache.values[i], window=window)
        if rows.stop > rows.start:
            allowed = slack(query[rows], cache.keys[i], cache.values[i]) if key_lens[i] else 0.0
            assert_close(out[rows], exact, slack=allowed)
            assert_lse_close(lse[rows], exact_lse)


@pytest.mark.parametrize("window", [16, 17, 33, 50, 200])
def test_a_window_over_many_tiles(window: int) -> None:
    """Of 16 keys a tile, some are outside, some cut by the window, some whole, some cut by the diagonal."""
    query, key, value = normal(40, 2, 16, seed=1), normal(90, 2, 16, seed=2), normal(90, 2, 16, seed=3)
    with tiles(16, 16), poisoned():
        out = flash_attention(query, key, value, starts([40]), starts([90]), 40, window=window)
    assert_close(out, by_hand(query, key, value, window=window)[0], slack=slack(query, key, value))


@pytest.mark.parametrize("head_dim", [32, 64, 80, 96, 128])
@pytest.mark.parametrize("num_queries", [3, 17, 150])
def test_the_tiles_of_a_launch(head_dim: int, num_queries: int) -> None:
    """Whatever `launch_config` chooses: one tile of 16 rows, one of 64, several of 128."""
    query = normal(num_queries, 2, head_dim, seed=1, dtype=torch.bfloat16)
    key, value = (normal(num_queries + 9, 1, head_dim, seed=i, dtype=torch.bfloat16) for i in (2, 3))
    out = flash_attention(query, key, value, starts([num_queries]), starts([num_queries + 9]), num_queries)
    assert_close(out, by_hand(query, key, value)[0], slack=slack(query, key, value))


def test_a_scale_of_ones_own() -> None:
    query, key, value = (normal(20, 2, 16, seed=i) for i in (1, 2, 3))
    out = flash_attention(query, key, value, starts([20]), starts([20]), 20, scale=0.7)
    assert_close(out, by_hand(query, key, value, scale=0.7)[0], slack=slack(query, key, value))


def test_dense_int8_and_transposed_queries() -> None:
    codes = torch.randint(-127, 128, (2, 30, 2, 16), dtype=torch.int8, device=DEVICE)
    scales = torch.rand(2, 30, 2, device=DEVICE) / 50
    key, value = codes.double() * scales.double().unsqueeze(-1)
    query = normal(2, 16, 25, seed=4).permute(2, 0, 1)  # [25, 2, 16], elements of a head far from each other
    with tiles(16, 16), poisoned():
        out = flash_attention(query, *codes, starts([25]), starts([30]), 25, *scales)
    assert_close(out, by_hand(query, key, value)[0], slack=slack(query, key, value))


def test_torch_sees_an_operator_that_writes_only_the_log_sum_exp() -> None:
    query, key, value = (normal(5, 2, 16, seed=i) for i in (1, 2, 3))
    arguments = (query, key, value, starts([5]), starts([5]), 5, None, None, torch.empty(5, 2, device=DEVICE))
    torch.library.opcheck(torch.ops.infra_lab.flash_attention, arguments, test_utils=("test_schema", "test_faketensor"))


def test_what_is_refused() -> None:
    query, key = torch.ones(4, 4, 16, device=DEVICE), torch.ones(4, 2, 16, device=DEVICE)
    at, codes = starts([4]), torch.ones(4, 2, 16, dtype=torch.int8, device=DEVICE)
    scales = torch.ones(4, 2, device=DEVICE)
    refused = [
        ("of one shape and dtype", lambda: flash_attention(query, key, key[:3], at, at, 4)),
        ("a multiple of 2", lambda: flash_attention(query[:, :3], key, key, at, at, 4)),
        ("must be \\[T, Hq, 8\\]", lambda: flash_attention(query, key[:, :, :8], key[:, :, :8], at, at, 4)),
        ("keys of its dtype", lambda: flash_attention(query, key.half(), key.half(), at, at, 4)),
        ("query must be float32", lambda: flash_attention(query.double(), key.double(), key.double(), at, at, 4)),
        ("must be int32", lambda: flash_attention(query, key, key, at.long(), at, 4)),
        ("both must be", lambda: flash_attention(query, key, key, at, starts([2, 2]), 4)),
        ("window is for causal", lambda: flash_attention(query, key, key, at, at, 4, causal=False, window=2)),
        ("must be positive", lambda: flash_attention(query, key, key, at, at, 4, scale=0.0)),
        ("int8 needs two", lambda: flash_attention(query, codes, codes, at, at, 4)),
        ("others none", lambda: flash_attention(query, key, key, at, at, 4, scales, scales)),
        ("scales are", lambda: flash_attention(query, codes, codes, at, at, 4, scales[:3], scales[:3])),
        ("log_sum_exp is", lambda: flash_attention(query, key, key, at, at, 4, None, None, scales)),
        ("must be \\[N, B, 2", lambda: paged_flash_attention(query, key, at, at[1:], at[None], 4)),
        ("block_tables", lambda: paged_flash_attention(query, key.view(1, 2, 2, 2, 16), at, at, at[None], 4)),
    ]
    for message, call in refused:
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(ValueError, match="compute no gradients"):
        flash_attention(query.requires_grad_(), key, key, at, at, 4)


def test_the_cost_counts_what_is_seen_and_read() -> None:
    chunk = flash_attention_cost([3], [10], 4, 2, 8, 2)
    assert chunk.flops == 4 * (8 + 9 + 10) * 4 * 8
    assert chunk.num_bytes == 2 * 3 * 4 * 8 * 2 + 10 * 2 * 2 * 8 * 2
    window = flash_attention_cost([3], [10], 4, 2, 8, 2, window=5)
    assert window.flops == 4 * 15 * 4 * 8
    assert window.num_bytes == 2 * 3 * 4 * 8 * 2 + 7 * 2 * 2 * 8 * 2
    int8 = flash_attention_cost([1], [10], 4, 2, 8, 2, kv_bytes=1)
    assert int8.num_bytes == 2 * 4 * 8 * 2 + 10 * 2 * (2 * 8 + 2 * 4)
