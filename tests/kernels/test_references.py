"""Every reference against its formula in float64, written out in the plainest way."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kernels

DTYPES = {torch.float32: 1e-5, torch.bfloat16: 3e-2}


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    tolerance = DTYPES[actual.dtype]
    torch.testing.assert_close(actual.double(), expected.double(), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 576), (7, 33), (3, 5, 64)])
def test_rms_norm(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, weight = torch.randn(shape).to(dtype), torch.randn(shape[-1]).to(dtype)
    exact = x.double() / torch.sqrt(x.double().square().mean(-1, keepdim=True) + 1e-5) * weight.double()
    assert_close(kernels.rms_norm(x, weight, 1e-5), exact)


@pytest.mark.parametrize("dtype", DTYPES)
def test_silu_mul(dtype: torch.dtype) -> None:
    x = torch.randn(5, 14).to(dtype)
    gate, up = x.double()[:, :7], x.double()[:, 7:]
    assert_close(kernels.silu_mul(x), gate / (1 + torch.exp(-gate)) * up)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rotary_turns_each_plane(dtype: torch.dtype) -> None:
    heads, angles = torch.randn(4, 3, 8).to(dtype), torch.rand(4, 4) * 6.28
    cos = torch.cat([angles.cos()] * 2, dim=-1).unsqueeze(1)
    sin = torch.cat([-angles.sin(), angles.sin()], dim=-1).unsqueeze(1)
    planes = torch.complex(heads[..., :4].double(), heads[..., 4:].double())
    turned = planes * torch.polar(torch.ones(4, 4, dtype=torch.float64), angles.double()).unsqueeze(1)
    assert_close(
        kernels.apply_rotary(heads, cos.to(dtype), sin.to(dtype)), torch.cat([turned.real, turned.imag], dim=-1)
    )


def test_kv_store_writes_its_slots_and_nothing_else() -> None:
    cache = torch.full((4, 2, 2, 1, 3), 7.0)
    key, value = torch.randn(2, 1, 3), torch.randn(2, 1, 3)
    kernels.kv_store(cache, key, value, torch.tensor([5, 0]))
    assert torch.equal(cache[2, 1, 0], key[0])
    assert torch.equal(cache[2, 1, 1], value[0])
    assert torch.equal(cache[0, 0, 0], key[1])
    assert (cache == 7.0).sum() == cache.numel() - 12


def test_copy_blocks_reads_all_sources_before_it_writes() -> None:
    cache = torch.arange(4.0).view(4, 1, 1, 1, 1).repeat(1, 2, 2, 1, 3)
    kernels.copy_blocks(cache, torch.tensor([0, 1]), torch.tensor([1, 2]))
    assert cache[:, 0, 0, 0, 0].tolist() == [0.0, 0.0, 1.0, 3.0]


def attention_by_hand(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, position: int) -> torch.Tensor:
    """One query [Hq, D] at `position` over key and value [T, Hkv, D], in float64, head by head."""
    num_heads, head_dim = query.shape
    group = num_heads // key.shape[1]
    out = torch.empty(num_heads, head_dim, dtype=torch.float64)
    for head in range(num_heads):
        k, v = key[: position + 1, head // group].double(), value[: position + 1, head // group].double()
        scores = k @ query[head].double() / math.sqrt(head_dim)
        out[head] = torch.softmax(scores, dim=0) @ v
    return out


@settings(max_examples=60, deadline=None)
@given(
    chunks=st.lists(st.tuples(st.integers(0, 20), st.integers(1, 9)), min_size=1, max_size=4),
    block_size=st.integers(1, 5),
    heads=st.sampled_from([(1, 1), (4, 2), (6, 2), (9, 3)]),
    scattered=st.booleans(),
    stored=st.sampled_from([None, torch.int8, torch.float8_e4m3fn]),
    seed=st.integers(0, 2**31),
)
def test_paged_attention_equals_dense_attention(
    chunks: list[tuple[int, int]],
    block_size: int,
    heads: tuple[int, int],
    scattered: bool,
    stored: torch.dtype | None,
    seed: int,
) -> None:
    """Any mix of decodes and chunks (start, length), over blocks that lie in order or anywhere, garbage in between."""
    from infra_lab.engine.step_input import prepare_step
    from infra_lab.sampling_params import SamplingParams
    from infra_lab.scheduler.plan import Chunk, StepPlan
    from infra_lab.scheduler.request import Request

    generator = torch.Generator().manual_seed(seed)
    num_heads, num_kv_heads = heads
    ends = [start + length for start, length in chunks]
    num_blocks = [-(-end // block_size) for end in ends]
    order = torch.randperm(sum(num_blocks) + 3, generator=generator) if scattered else torch.arange(sum(num_blocks) + 3)
    cache = torch.randn(len(order), block_size, 2, num_kv_heads, 16, generator=generator)
    kv_cache: kernels.KVCache = cache
    if stored is not None:
        codes, scales = (cache * 30).round().to(stored), torch.rand(cache.shape[:4], generator=generator) / 20
        kv_cache, cache = kernels.QuantizedKV(codes, scales), codes.double() * scales.double().unsqueeze(-1)
    plan, taken, keys, values = StepPlan(0), 0, [], []
    for i, (end, needed) in enumerate(zip(ends, num_blocks, strict=True)):
        request = Request(token_ids=[0] * end, request_id=str(i), params=SamplingParams())
        request.block_table.extend(order[taken : taken + needed].tolist())
        taken += needed
        dense = cache[torch.tensor(request.block_table)].flatten(0, 1)[:end]  # [end, 2, Hkv, D]
        keys.append(dense[:, 0])
        values.append(dense[:, 1])
        plan.chunks.append(Chunk(request, chunks[i][0], chunks[i][1]))
    prepared = prepare_step(plan, block_size=block_size, dtype=torch.float32, device=torch.device("cpu"))
    inputs = prepared.inputs
    query = torch.randn(len(inputs.positions), num_heads, 16, generator=generator)
    out = kernels.paged_attention(query, kv_cache, inputs.groups)
    row_order = [i for i in range(len(chunks)) if chunks[i][1] == 1]
    row_order.sort(key=lambda i: chunks[i][0])
    row_order += [i for i in range(len(chunks)) if chunks[i][1] > 1]
    row = 0
    for i in row_order:
        start, length = chunks[i]
        for position in range(start, start + length):
            assert inputs.positions[row] == position
            exact = attention_by_hand(query[row], keys[i], values[i], position)
            torch.testing.assert_close(out[row].double(), exact, atol=2e-5, rtol=2e-5)
            row += 1
    assert row == len(query)


def test_costs_count_what_must_move() -> None:
    decode = kernels.attention.paged_attention_cost([1], [1000], 32, 8, 128, 2)
    assert decode.flops == 4 * 1000 * 32 * 128
    assert decode.num_bytes == 2 * (32 + 8 * 1000) * 128 * 2
    prefill = kernels.attention.paged_attention_cost([4], [4], 1, 1, 8, 2)
    assert prefill.flops == 4 * (1 + 2 + 3 + 4) * 8
