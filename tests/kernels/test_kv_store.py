"""The paged cache's writes against loops over slots and blocks; both implementations, bit for bit.

In 8 bits: no value is off by more than half a step of its format, which float64 says, and both implementations agree.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kernels
from kernels.dispatch import Mode
from kernels.kv_store import MAX_COPIES, copy_blocks, dequantize, kv_store
from tests.kernels.conftest import DEVICE

IMPLEMENTATIONS = st.sampled_from(["triton", "reference"])
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])


def random_cache(
    num_blocks: int, block_size: int, heads: int, head_dim: int, dtype: torch.dtype, seed: int
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_blocks, block_size, 2, heads, head_dim, generator=generator).to(DEVICE, dtype)


@settings(max_examples=80, deadline=None)
@given(
    IMPLEMENTATIONS,
    st.integers(0, 9),
    st.integers(1, 5),
    st.integers(1, 5),
    st.sampled_from([1, 3, 16, 80]),
    DTYPES,
    st.floats(0, 1),
    st.integers(0, 2**31),
)
def test_kv_store(
    implementation: Mode,
    num_tokens: int,
    block_size: int,
    heads: int,
    dim: int,
    dtype: torch.dtype,
    padding: float,
    seed: int,
) -> None:
    """Key is a view of a projection, the heads of value lie before its tokens; some slots are padding."""
    generator = torch.Generator().manual_seed(seed)
    cache = random_cache(12, block_size, heads, dim, dtype, seed)
    projected = torch.randn(num_tokens, 2 * heads + 1, dim, generator=generator).to(DEVICE, dtype)
    key = projected[:, 1 : 1 + heads]
    value = projected[:, 1 + heads :].transpose(0, 1).contiguous().transpose(0, 1)
    slots = torch.randperm(12 * block_size, generator=generator)[:num_tokens]
    slots[torch.rand(len(slots), generator=generator) < padding] = -1
    key, value = key[: len(slots)], value[: len(slots)]
    expected = cache.clone()
    for token, slot in enumerate(slots.tolist()):
        if slot >= 0:
            expected[slot // block_size, slot % block_size, 0] = key[token]
            expected[slot // block_size, slot % block_size, 1] = value[token]
    with kernels.use(implementation):
        kv_store(cache, key, value, slots.to(DEVICE))
    assert torch.equal(cache, expected)


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from([torch.int8, torch.float8_e4m3fn]),
    st.integers(0, 9),
    st.integers(1, 5),
    st.integers(1, 5),
    st.sampled_from([1, 3, 16, 80]),
    DTYPES,
    st.integers(0, 2**31),
)
def test_kv_store_in_8_bits(
    eight_bits: torch.dtype, num_tokens: int, block_size: int, heads: int, dim: int, dtype: torch.dtype, seed: int
) -> None:
    """Some slots are padding, and the first head of the first token is all zeros."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-100, 100, (6, block_size, 2, heads, dim), generator=generator, dtype=torch.int8)
    before = codes.view(eight_bits).to(DEVICE), torch.rand(codes.shape[:4], generator=generator).to(DEVICE)
    kv = torch.randn(2, num_tokens, heads, dim, generator=generator) * 10 ** torch.randn(heads, 1, generator=generator)
    kv[:, :1, 0] = 0
    key, value = kv.to(DEVICE, dtype)
    slots = torch.randperm(6 * block_size, generator=generator)[:num_tokens]
    slots[torch.rand(len(slots), generator=generator) < 0.3] = -1
    key, value = key[: len(slots)], value[: len(slots)]
    caches = []
    for implementation in ("triton", "reference"):
        cache, scales = before[0].clone(), before[1].clone()
        with kernels.use(implementation):
            kv_store(cache, key, value, slots.to(DEVICE), scales)
        caches.append((cache.view(torch.uint8), scales))
    assert torch.equal(caches[0][0], caches[1][0])
    assert torch.equal(caches[0][1], caches[1][1])

    stored, real = caches[0][0].view(eight_bits).flatten(0, 1).double(), slots[slots >= 0].to(DEVICE)
    scales = caches[0][1].flatten(0, 1).double()[real]  # [T, 2, Hkv]
    x = torch.stack([key, value], dim=1)[slots >= 0].double()  # [T, 2, Hkv, D]
    limit = 127 if eight_bits == torch.int8 else 448
    assert torch.allclose(scales, x.abs().amax(-1) / limit, rtol=1e-6, atol=1e-30)
    steps = scales.unsqueeze(-1).expand(x.shape)
    if limit == 448:  # 3 bits behind the first one, and the smallest that has them is 2^-6
        steps = torch.maximum(x.abs() / 2**3, steps * 2**-6 / 2**3)
    assert ((stored[real] * scales.unsqueeze(-1) - x).abs() <= steps * 0.501).all()
    others = torch.ones(6 * block_size, dtype=torch.bool, device=DEVICE)
    others[real] = False
    for after, old in zip(caches[0], (before[0].view(torch.uint8), before[1]), strict=True):
        assert torch.equal(after.flatten(0, 1)[others], old.flatten(0, 1)[others])


@pytest.mark.parametrize("eight_bits", [torch.int8, torch.float8_e4m3fn])
def test_every_value_is_read_back_exactly(eight_bits: torch.dtype) -> None:
    values = torch.arange(256, dtype=torch.uint8).view(eight_bits)
    values = values[~values.double().isnan()].to(DEVICE)
    read = dequantize(values.unsqueeze(1), torch.full(values.shape, 0.5, device=DEVICE), torch.float64).squeeze(1)
    assert torch.equal(read, values.double() / 2)
    assert torch.equal(read.signbit(), values.double().signbit())


@settings(max_examples=60, deadline=None)
@given(
    IMPLEMENTATIONS,
    st.integers(0, 20),
    st.sampled_from([(1, 1, 3), (16, 3, 16), (2, 5, 80)]),
    DTYPES,
    st.integers(0, 2**31),
)
def test_copy_blocks(
    implementation: Mode, num_copies: int, shape: tuple[int, int, int], dtype: torch.dtype, seed: int
) -> None:
    """Sources are drawn from all blocks, those that are written to among them."""
    check_copies(implementation, num_copies, shape, dtype, seed)


@pytest.mark.parametrize("num_copies", [MAX_COPIES, MAX_COPIES + 1])
def test_many_copies(num_copies: int) -> None:
    check_copies("triton", num_copies, (4, 2, 16), torch.bfloat16, 1)


def check_copies(
    implementation: Mode, num_copies: int, shape: tuple[int, int, int], dtype: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    num_blocks = num_copies + 3
    cache = random_cache(num_blocks, *shape, dtype, seed)
    sources = torch.randint(-1, num_blocks, (num_copies,), generator=generator)
    destinations = torch.randperm(num_blocks, generator=generator)[:num_copies]
    destinations[torch.rand(num_copies, generator=generator) < 0.1] = -1
    before, expected = cache.clone(), cache.clone()
    for source, destination in zip(sources.tolist(), destinations.tolist(), strict=True):
        if source >= 0 and destination >= 0:
            expected[destination] = before[source]
    with kernels.use(implementation):
        copy_blocks(cache, sources.to(DEVICE), destinations.to(DEVICE))
    assert torch.equal(cache, expected)


def test_what_does_not_fit_the_cache_is_refused() -> None:
    cache, slots = torch.zeros(4, 2, 2, 3, 8, device=DEVICE), torch.tensor([0, 1], device=DEVICE)
    good = torch.zeros(2, 3, 8, device=DEVICE)
    for bad in (good[:1], good[:, :2], good[..., :4], good.half()):
        with pytest.raises(ValueError, match=r"both must be \[2, 3, 8\] of torch.float32"):
            kv_store(cache, good, bad, slots)
    with pytest.raises(ValueError, match="contiguous"):
        kv_store(cache.transpose(0, 1), good, good, slots)
    with pytest.raises(ValueError, match=r"both must be \[C\]"):
        copy_blocks(cache, slots, slots[:1])


@pytest.mark.parametrize("implementation", ["triton", "reference"])
def test_scales_that_do_not_fit_the_cache_are_refused(implementation: Mode) -> None:
    cache, slots = torch.zeros(4, 2, 2, 3, 8, device=DEVICE), torch.tensor([0, 1], device=DEVICE)
    key, scales = torch.zeros(2, 3, 8, device=DEVICE), torch.zeros(4, 2, 2, 3, device=DEVICE)
    with kernels.use(implementation):
        with pytest.raises(ValueError, match="int8 without scales"):
            kv_store(cache.to(torch.int8), key, key, slots)
        with pytest.raises(ValueError, match="float32 with scales"):
            kv_store(cache, key, key, slots, scales)
        for bad in (scales[:3], scales.half(), scales.transpose(0, 1).contiguous().transpose(0, 1)):
            with pytest.raises(ValueError, match=r"they must be \[4, 2, 2, 3\] of torch.float32, contiguous"):
                kv_store(cache.to(torch.int8), key, key, slots, bad)
    with pytest.raises(ValueError, match="of one floating-point dtype"):
        kv_store(cache.to(torch.int8), key, key.half(), slots, scales)


def test_a_gradient_is_refused() -> None:
    cache, slots = torch.zeros(4, 2, 2, 3, 8, device=DEVICE), torch.tensor([0, 1], device=DEVICE)
    key = torch.zeros(2, 3, 8, device=DEVICE, requires_grad=True)
    with pytest.raises(ValueError, match="compute no gradients"):
        kv_store(cache, key, key, slots)
