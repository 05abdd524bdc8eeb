"""Which of the three matrix products runs, in tiles of which size, decided from the shape alone.

A multiprocessor works on a tile of C at a time, so that the machine goes through C in waves:

    tiles = ⌈M / BLOCK_M⌉ · ⌈N / BLOCK_N⌉        waves = ⌈tiles / multiprocessors⌉        time ~ waves · (time of a tile)

A large tile reads less per multiplication (BLOCK_M · BLOCK_N products for BLOCK_M + BLOCK_N loads), a small one leaves fewer
multiprocessors idle in the last wave. With fewer tiles than multiprocessors the sum over K is split as well (split-K).

The speeds in `_TILES` are estimates, and only their ratios matter: measure with `infra-lab bench kernels`, then change them.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from kernels.spec import KernelConfig

Variant = Literal["plain", "persistent", "split_k"]
MAX_SPLIT = 16
MIN_SPLIT_K = 512
"""Fewer products in a row would not pay for writing their sum to memory and reading it again."""


@dataclass(frozen=True, slots=True)
class MatmulPlan:
    """One launch of a matrix product."""

    variant: Variant
    config: KernelConfig
    split: int = 1
    """Into how many parts the sum over K is cut."""


def _tile(m: int, n: int, k: int, warps: int, stages: int) -> KernelConfig:
    return KernelConfig({"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, "GROUP": 8}, warps, stages)


_TILES = (
    # A tile, and how much of a multiprocessor's peak it reaches: by its loads per product, and by keeping the pipes filled.
    (_tile(128, 256, 64, 8, 3), 1.00),
    (_tile(128, 128, 64, 8, 3), 0.80),
    (_tile(128, 64, 64, 4, 4), 0.60),
    (_tile(64, 128, 64, 8, 4), 0.60),
    (_tile(64, 64, 64, 4, 4), 0.45),
    (_tile(32, 64, 128, 4, 4), 0.30),
    (_tile(16, 64, 128, 4, 5), 0.20),
)
CONFIGS = tuple(config for config, _ in _TILES)
PLAIN_CONFIGS = CONFIGS[1:]
"""Tiles that leave registers for addresses."""


def float32_tile(rows: int) -> KernelConfig:
    """Return the tile for float32 operands: twice the bytes, and three products for one. Loads and sums fill the registers."""
    block_m = min(max(1 << (rows - 1).bit_length(), 16), 128)
    return _tile(block_m, 64, 64 if block_m == 16 else 32, 8 if block_m == 128 else 4, 3)


def num_tiles(config: KernelConfig, M: int, N: int) -> int:
    """Return how many tiles cover a result [M, N]."""
    return -(-M // config.blocks["BLOCK_M"]) * -(-N // config.blocks["BLOCK_N"])


@lru_cache(maxsize=4096)
def plan_matmul(M: int, N: int, K: int, num_multiprocessors: int) -> MatmulPlan:
    """Plan the product of [M, K] and [K, N].

    Of the tiles that are not mostly padding, the one with the least estimated time. Large ones are worked through by programs
    that stay (persistent), less than half a wave of any is split over K.
    """
    rows = max(16, 1 << (M - 1).bit_length()) if M else 16
    plans = [
        (plan_tile(config, M, N, K, num_multiprocessors), speed)
        for config, speed in _TILES
        if config.blocks["BLOCK_M"] <= rows
    ]

    def time(candidate: tuple[MatmulPlan, float]) -> float:
        plan, speed = candidate
        blocks, programs = plan.config.blocks, num_tiles(plan.config, M, N) * plan.split
        return -(-programs // num_multiprocessors) * blocks["BLOCK_M"] * blocks["BLOCK_N"] / (speed * plan.split)

    return min(plans, key=time)[0]


def plan_tile(config: KernelConfig, M: int, N: int, K: int, num_multiprocessors: int) -> MatmulPlan:
    """Plan the same product in given tiles: which kernel, and into how many parts the sum is cut."""
    tiles = num_tiles(config, M, N)
    is_narrow = config.blocks["BLOCK_M"] <= 32  # streams B and hardly computes: two programs hide each other's waits
    split = plan_split(tiles, K, num_multiprocessors * (2 if is_narrow else 1))
    if split > 1:
        return MatmulPlan("split_k", config, split)
    return MatmulPlan("persistent" if config.blocks["BLOCK_M"] >= 128 else "plain", config)


def plan_split(tiles: int, K: int, num_programs: int) -> int:
    """Return into how many parts to cut a sum over K: a power of two, as long as no more than num_programs come of it."""
    split = 1
    while tiles * split * 2 <= num_programs and K // (split * 2) >= MIN_SPLIT_K and split < MAX_SPLIT:
        split *= 2
    return split
