"""What the prefix cache costs a request on the CPU, and that it costs the same however big the cache is.

Each request is a prompt of 512 tokens, of which the first 256 are one of 16 shared system prompts: it is looked up and
claimed (`open`), given blocks (`grow`), registered (`commit`) and, 32 requests later, freed. The cache is full from the
start, so that each new block evicts an old one; and the shared prompts survive in the smallest cache. So every size has
the same hits and evictions, and runs the same operations; what rises a little with the size is the time that memory
takes to answer, since the entries of an evicted block were last touched one whole cache ago.

The limit that a request cannot go below is hashing its tokens; it is measured on the same prompts in the same run.
"""

import random
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from statistics import mean, median, quantiles
from time import perf_counter

from infra_lab.errors import ConfigError
from infra_lab.paged_kv.block_manager import BlockManager
from infra_lab.paged_kv.hashing import extend_block_hashes
from infra_lab.paged_kv.sequence import KVSequence

BLOCK_SIZE = 16
SHARED_TOKENS = 256
PROMPT_TOKENS = 512
NUM_SHARED_PROMPTS = 16
NUM_RUNNING = 32
VOCAB_SIZE = 128_000
MIN_CACHE_BLOCKS = 4096  # running prompts take 32 · 32; the rest keeps a shared prompt until it is its turn again
FILL_BLOCKS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixCacheRow:
    """Cost of one request of 512 tokens at one cache size."""

    cache_blocks: int
    cache_tokens: int
    num_requests: int
    hit_rate: float
    """Share of the prompt tokens that were found in the cache."""
    evictions_per_request: float
    mean_us: float
    p50_us: float
    p99_us: float
    """open, grow, commit and free together, hashing included."""
    hashing_us: float
    """The limit: median time to hash the prompt's 32 blocks and do nothing else."""
    ratio_to_hashing: float
    ratio_to_smallest_cache: float
    """p50 over that of the first row: 1 means that the cost does not depend on the cache size."""


def measure_prefix_cache(
    num_requests: int = 10_000, cache_sizes: Sequence[int] = (4096, 16_384, 65_536, 262_144), *, seed: int = 0
) -> list[PrefixCacheRow]:
    """Time requests that share prefixes at several cache sizes, given in blocks of 16 tokens; one row a size.

    Raises ConfigError for less than 2 requests, or for a cache too small to hold the shared prefixes between two uses.
    """
    if num_requests < 2:
        raise ConfigError(f"num_requests is {num_requests}; percentiles need at least 2")
    for cache_blocks in cache_sizes:
        if cache_blocks < MIN_CACHE_BLOCKS:
            raise ConfigError(f"a cache of {cache_blocks} blocks loses shared prompts; give {MIN_CACHE_BLOCKS} or more")
    rows: list[PrefixCacheRow] = []
    for cache_blocks in cache_sizes:
        # The same requests at every size.
        rows.append(_measure(num_requests, cache_blocks, random.Random(seed), rows[0].p50_us if rows else None))
    return rows


def _measure(num_requests: int, cache_blocks: int, rng: random.Random, first_p50_us: float | None) -> PrefixCacheRow:
    manager = BlockManager(cache_blocks, BLOCK_SIZE)
    _fill(manager, rng)
    prompts = _prompts(rng)
    running: deque[KVSequence] = deque()
    for tokens in islice(prompts, 8 * NUM_SHARED_PROMPTS):  # until every shared prompt is cached
        _serve(manager, KVSequence(tokens), running)

    queried, hits, evictions = manager.stats.queried_tokens, manager.stats.hit_tokens, manager.stats.evictions
    times_us: list[float] = []
    hashing_us: list[float] = []
    for tokens in islice(prompts, num_requests):
        seq, to_hash = KVSequence(tokens), KVSequence(tokens)
        start_s = perf_counter()
        _serve(manager, seq, running)
        served_s = perf_counter()
        extend_block_hashes(to_hash, BLOCK_SIZE, PROMPT_TOKENS // BLOCK_SIZE)
        hashed_s = perf_counter()
        times_us.append((served_s - start_s) * 1e6)
        hashing_us.append((hashed_s - served_s) * 1e6)
    manager.check_integrity(running)

    p50_us, hashing_p50_us = median(times_us), median(hashing_us)
    return PrefixCacheRow(
        cache_blocks=cache_blocks,
        cache_tokens=cache_blocks * BLOCK_SIZE,
        num_requests=num_requests,
        hit_rate=(manager.stats.hit_tokens - hits) / (manager.stats.queried_tokens - queried),
        evictions_per_request=(manager.stats.evictions - evictions) / num_requests,
        mean_us=mean(times_us),
        p50_us=p50_us,
        p99_us=quantiles(times_us, n=100)[98],
        hashing_us=hashing_p50_us,
        ratio_to_hashing=p50_us / hashing_p50_us,
        ratio_to_smallest_cache=p50_us / (first_p50_us or p50_us),
    )


def _serve(manager: BlockManager, seq: KVSequence, running: deque[KVSequence]) -> None:
    """Admit one request and compute its prompt in one step; the oldest one that runs ends."""
    if len(running) == NUM_RUNNING:
        manager.free(running.popleft())
    start = manager.open(seq)
    copies = manager.grow(seq, PROMPT_TOKENS, start)
    assert copies == (), "32 running prompts fit in the smallest cache, and nobody forks"
    manager.commit(seq, PROMPT_TOKENS)
    running.append(seq)


def _fill(manager: BlockManager, rng: random.Random) -> None:
    """Fill the cache with prefixes that nobody asks for again, so that measuring starts in the steady state."""
    num_tokens = FILL_BLOCKS * BLOCK_SIZE
    for _ in range(-(-manager.num_blocks // FILL_BLOCKS)):
        seq = KVSequence(_random_tokens(rng, num_tokens))
        manager.grow(seq, num_tokens, 0)
        manager.commit(seq, num_tokens)
        manager.free(seq)


def _prompts(rng: random.Random) -> Iterator[list[int]]:
    shared = [_random_tokens(rng, SHARED_TOKENS) for _ in range(NUM_SHARED_PROMPTS)]
    while True:
        yield rng.choice(shared) + _random_tokens(rng, PROMPT_TOKENS - SHARED_TOKENS)


def _random_tokens(rng: random.Random, num_tokens: int) -> list[int]:
    return rng.choices(range(VOCAB_SIZE), k=num_tokens)
