"""The paged cache's writes against loops over slots and blocks; both implementations, bit for bit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kernels
from kernels.dispatch import Mode
from kernels.kv_store import MAX_COPIES, copy_blocks, kv_store
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


def test_a_gradient_is_refused() -> None:
    cache, slots = torch.zeros(4, 2, 2, 3, 8, device=DEVICE), torch.tensor([0, 1], device=DEVICE)
    key = torch.zeros(2, 3, 8, device=DEVICE, requires_grad=True)
    with pytest.raises(ValueError, match="compute no gradients"):
        kv_store(cache, key, key, slots)
