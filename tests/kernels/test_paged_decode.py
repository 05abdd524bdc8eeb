"""Decode attention against attention by hand in float64: any lengths, heads, pages, dtype, window, number of splits."""

import math
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kernels
from kernels.paged_decode import MAX_SPLITS, MIN_SPLIT_TOKENS, RESIDENT, num_splits, paged_decode
from kernels.spec import KernelConfig
from tests.kernels.attention_cases import Cache, assert_lse_close, by_hand, slack
from tests.kernels.conftest import DEVICE, assert_close, poisoned

FLOATS = [torch.float32, torch.bfloat16, torch.float16]
SMALL_TILES = KernelConfig({"BLOCK_N": 16}, num_warps=4, num_stages=2)


@settings(max_examples=120, deadline=None)
@given(
    st.lists(st.integers(0, 100), min_size=0, max_size=3), st.sampled_from([(1, 1), (4, 2), (3, 1), (18, 1)]),
    st.sampled_from([8, 20]), st.sampled_from(FLOATS), st.sampled_from([None, torch.int8, torch.float8_e4m3fn]),
    st.sampled_from([0, 0, 1, 40]), st.sampled_from([1, 3, 16]), st.sampled_from([1, 2, 3, 19]),
    st.sampled_from([0.1, 1.0, 30.0]), st.booleans(), st.sampled_from(["triton", "triton", "reference"]), st.integers(0, 2**31),
)  # fmt: skip
def test_paged_decode(
    lengths: list[int], heads: tuple[int, int], head_dim: int, dtype: torch.dtype, quantized: torch.dtype | None, window: int,
    page: int, splits: int, spread: float, wants_lse: bool, mode: kernels.dispatch.Mode, seed: int,
) -> None:  # fmt: skip
    cache = Cache(lengths, page, heads[1], head_dim, quantized or dtype, seed)
    wide = torch.randn(len(lengths), heads[0] + 3, head_dim, generator=cache.generator).to(dtype) * spread
    query = wide.to(DEVICE)[:, : heads[0]]
    lse = torch.full(query.shape[:2], math.nan, device=DEVICE) if wants_lse else None
    with (
        patch("kernels.paged_decode.num_splits", lambda *_: splits),
        patch("kernels.paged_decode.launch_config", lambda *_: SMALL_TILES),
        poisoned(),
        kernels.use(mode),
    ):
        out = paged_decode(
            query, cache.kv, cache.lengths, cache.tables, max([*lengths, 1]), cache.scales, lse, window=window
        )
    for i, length in enumerate(lengths):
        exact, exact_lse = by_hand(query[i : i + 1], cache.keys[i], cache.values[i], window=window)
        allowed = slack(query[i : i + 1], cache.keys[i], cache.values[i]) if length else 0.0
        assert_close(out[i : i + 1], exact, slack=allowed)
        if lse is not None:
            assert_lse_close(lse[i : i + 1], exact_lse)


@pytest.mark.parametrize("head_dim", [64, 96, 128])
def test_what_a_launch_chooses(head_dim: int) -> None:
    """Long enough that its own number of splits is more than one, in its own tiles."""
    cache = Cache([700, 1, 300], 16, 1, head_dim, torch.bfloat16, seed=1)
    query = torch.randn(3, 2, head_dim, generator=cache.generator).to(DEVICE, torch.bfloat16)
    with poisoned():
        out = paged_decode(query, cache.kv, cache.lengths, cache.tables, 700, scale=0.2)
    for i in range(3):
        exact, _ = by_hand(query[i : i + 1], cache.keys[i], cache.values[i], scale=0.2)
        assert_close(out[i : i + 1], exact, slack=slack(query, cache.keys[i], cache.values[i]))


@given(st.integers(0, 600), st.integers(1, 128), st.integers(0, 1 << 20), st.sampled_from([1, 108, 132]))
def test_splits_are_long_enough_and_few_enough(batch: int, kv_heads: int, longest: int, multiprocessors: int) -> None:
    splits = num_splits(batch, kv_heads, longest, multiprocessors)
    assert 1 <= splits <= MAX_SPLITS
    assert splits == 1 or longest // splits >= MIN_SPLIT_TOKENS


def test_splits_fill_the_machine_and_no_more() -> None:
    places = RESIDENT * 132
    assert num_splits(64, 8, 4096, 132) == 1  # 512 program instances for 528 places
    assert num_splits(1, 8, 512, 132) == 2  # no shorter split is worth its start
    assert 0.85 * places <= 8 * num_splits(1, 8, 1 << 20, 132) <= places
    assert num_splits(33, 8, 4096, 132) == 2  # 264 would leave half of it idle


def test_what_is_refused() -> None:
    query, cache = torch.ones(2, 4, 16, device=DEVICE), torch.ones(3, 4, 2, 2, 16, device=DEVICE)
    lengths = torch.tensor([3, 4], dtype=torch.int32, device=DEVICE)
    tables = torch.zeros(2, 1, dtype=torch.int32, device=DEVICE)
    refused = [
        ("must be \\[N, B, 2, Hkv, D\\]", lambda: paged_decode(query, cache[:, :, 0], lengths, tables, 4)),
        ("a multiple of 2", lambda: paged_decode(query[:, :3], cache, lengths, tables, 4)),
        ("must be int32", lambda: paged_decode(query, cache, lengths.long(), tables, 4)),
        ("they must be \\[2\\] and \\[2, W\\]", lambda: paged_decode(query, cache, lengths[:1], tables, 4)),
        ("scale must be positive", lambda: paged_decode(query, cache, lengths, tables, 4, scale=-1.0)),
        ("int8 needs two", lambda: paged_decode(query, cache.to(torch.int8), lengths, tables, 4)),
        ("kv_scales are", lambda: paged_decode(query, cache, lengths, tables, 4, cache[0, :, :, :, 0])),
        ("log_sum_exp is", lambda: paged_decode(query, cache, lengths, tables, 4, None, query)),
    ]
    for message, call in refused:
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(ValueError, match="compute no gradients"):
        paged_decode(query.requires_grad_(), cache, lengths, tables, 4)


def test_torch_sees_an_operator() -> None:
    cache = Cache([5, 9], 4, 1, 16, torch.float32, seed=3)
    query, lse = torch.randn(2, 2, 16, device=DEVICE), torch.empty(2, 2, device=DEVICE)
    arguments = (query, cache.kv, cache.lengths, cache.tables, 9, None, lse)
    torch.library.opcheck(torch.ops.infra_lab.paged_decode, arguments, test_utils=("test_schema", "test_faketensor"))
