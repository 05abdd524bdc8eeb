"""What the model predicts for launches that can be worked out by hand, and what no launch can escape."""

from dataclasses import replace
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.attention_traffic import prefill_traffic
from kernels.chips import CHIPS, chip_of
from kernels.compile import TARGETS, Compiled
from kernels.cost import Cost
from kernels.matmul import matmul_cost
from kernels.matmul_plan import CONFIGS
from kernels.predict import predict
from kernels.registry import all_specs
from kernels.spec import KernelConfig
from kernels.work import Traffic, Work, product_traffic

H100 = CHIPS["H100"]
FITS = Compiled("made up", 90, "", "", "", b"", 64, 0, 48 << 10, 8)
"""Four at once: 64 registers for 256 threads, and 48 of 228 KiB."""


def tile(m: int, n: int, k: int = 64, stages: int = 3) -> KernelConfig:
    return KernelConfig({"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, "GROUP": 8}, 8, stages)


def product(M: int, N: int, K: int) -> Work:
    return Work(f"{M} × {N} × {K}", matmul_cost(M, N, K, 2), lambda config: product_traffic(config, M, N, K), "bf16")


def made(config: KernelConfig) -> Compiled:
    """As large a tile as takes 4 bytes a sum in registers, and its operands in shared memory."""
    m, n, k = (config.blocks[name] for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K"))
    registers = 40 + m * n // (32 * config.num_warps)
    return replace(
        FITS, registers=registers, shared_bytes=2 * (m + n) * k * config.num_stages, num_warps=config.num_warps
    )


def seconds(work: Work, config: KernelConfig) -> float:
    predicted = predict(work, config, made(config), H100).seconds
    assert predicted is not None
    return predicted


def test_large_tiles_for_large_products_and_small_ones_for_few_rows() -> None:
    large, few = product(4096, 4096, 4096), product(16, 4096, 14_336)
    assert seconds(large, tile(128, 256)) < seconds(large, tile(128, 128)) < 0.5 * seconds(large, tile(32, 32))
    deep = {"k": 128, "stages": 4}  # small tiles leave room for more of K, and for more of it in flight
    assert not made(tile(128, 128, **deep)).blocks_per_multiprocessor
    assert seconds(few, tile(32, 32)) < seconds(few, tile(128, 128))
    assert seconds(few, tile(32, 32, **deep)) < 0.6 * seconds(few, tile(128, 128))


def test_a_tile_of_a_product_by_hand() -> None:
    """3 × 2 tiles of 128 × 256, each 16 turns of 64: A is read for each of 2 columns of tiles, B for each of 3 rows."""
    traffic = product_traffic(tile(128, 256), 300, 400, 1000)
    assert traffic.programs == 6
    assert traffic.turns == 16
    assert traffic.flops == 6 * 2 * 128 * 256 * 16 * 64
    assert traffic.num_bytes == 2 * (300 * 1000 * 2 + 1000 * 400 * 3 + 300 * 400)
    split = product_traffic(tile(128, 256), 300, 400, 1000, (2, 2, 4), split=2)
    assert (split.programs, split.turns) == (12, 8)
    assert split.num_bytes == 2 * (300 * 1000 * 2 + 1000 * 400 * 3) + 2 * 4 * 300 * 400


@given(
    length=st.integers(1, 200), group=st.sampled_from([1, 2, 4]), window=st.integers(0, 80),
    block_m=st.sampled_from([16, 32]), block_n=st.sampled_from([16, 64]),
)  # fmt: skip
def test_attention_counts_the_keys_of_every_tile(
    length: int, group: int, window: int, block_m: int, block_n: int
) -> None:
    config = KernelConfig({"BLOCK_M": block_m, "BLOCK_N": block_n})
    traffic = prefill_traffic(config, length, group, 3, 8, 32, window)
    tiles = [range(first, min(first + block_m, length * group)) for first in range(0, length * group, block_m)]
    keys = 0
    for rows in tiles:
        seen = [
            key
            for row in (rows[0], rows[-1])
            for key in range(max(row // group + 1 - window, 0) if window else 0, row // group + 1)
        ]
        keys += max(seen) + 1 - min(seen) // block_n * block_n
    assert traffic.programs == 3 * len(tiles)
    assert traffic.num_bytes == 3 * (keys * 32 + 4 * length * group * 8)


def test_what_is_the_bottleneck() -> None:
    """Hand-made launches on an H100: 132 multiprocessors, four programs on each, a wave of 528."""
    config = KernelConfig({}, 8, num_stages=3)

    def bound(
        flops: int, num_bytes: int, programs: int = 528, loaded: int = 0, turns: int = 1
    ) -> tuple[str | None, float]:
        work = Work(
            "", Cost(flops, num_bytes), lambda _: Traffic(programs, flops, max(loaded, num_bytes), turns), "bf16"
        )
        predicted = predict(work, config, FITS, H100)
        assert predicted.seconds is not None
        return predicted.bound, predicted.seconds

    assert bound(10**12, 10**6) == ("compute", pytest.approx(1e12 / 989.4e12))
    assert bound(10**12, 10**6, programs=133) == ("compute", pytest.approx(1e12 / 989.4e12 * 2 * 132 / 133)), (
        "two turns"
    )
    assert bound(10**12, 10**6, programs=1) == ("compute", pytest.approx(1e12 / 989.4e12 * 132)), "one of 132 works"
    assert bound(10**6, 10**9) == ("memory", pytest.approx(1e9 / 3.35e12))
    assert bound(10**6, 10**6, loaded=10**10) == ("cache", pytest.approx(1e10 / H100.l2_bytes_per_s))
    latency = 2 * 479 / 1.83e9
    assert bound(10**6, 10**6, programs=529, turns=100) == ("latency", pytest.approx(2 * 100 * latency / 2)), "2 waves"


def test_fewer_programs_at_once_wait_longer() -> None:
    work = Work("", Cost(10**6, 10**6), lambda _: Traffic(528, 10**6, 10**6, 100))
    times = []
    for registers in (64, 128, 255):
        predicted = predict(work, KernelConfig({}, 8, 3), replace(FITS, registers=registers), H100)
        assert predicted.bound == "latency"
        times.append(predicted.seconds)
    assert times == pytest.approx([times[0], 2 * times[0], 4 * times[0]])  # 4, 2 and 1 at once


@pytest.mark.parametrize("name", all_specs())
def test_no_launch_does_less_than_the_least(name: str) -> None:
    spec = all_specs()[name]
    assert spec.work.shape
    for config in spec.configs:
        traffic = spec.work.traffic(config)
        assert traffic.num_bytes >= spec.work.cost.num_bytes, "its intensity would be above the least cost's"
        assert traffic.flops >= spec.work.cost.flops
        assert traffic.turns >= 1
        assert traffic.programs >= 1
        for chip in CHIPS.values():
            predicted = predict(spec.work, config, replace(FITS, target=chip.target), chip)
            if spec.work.unit not in chip.flops:
                assert predicted.seconds is None
                assert "A100 has no matrix instructions for fp8" in predicted.why
                continue
            assert predicted.seconds is not None
            assert predicted.least_s is not None
            assert predicted.share is not None
            assert predicted.seconds >= predicted.least_s
            assert predicted.seconds >= spec.work.cost.num_bytes / chip.memory_bytes_per_s
            assert 0 < predicted.share <= 1


def test_what_cannot_run_has_no_time_but_a_reason() -> None:
    work, config = product(4096, 4096, 4096), tile(128, 128)
    spilled = predict(work, config, replace(FITS, spill_bytes=8), H100)
    too_large = predict(work, config, replace(FITS, shared_bytes=300 << 10), H100)
    assert spilled.seconds is too_large.seconds is spilled.share is None
    assert "spills" in spilled.why
    assert "does not fit" in too_large.why
    norm = all_specs()["rms_norm"].work
    assert "does not hold a row of 4,096" in predict(norm, KernelConfig({"BLOCK": 2048}), FITS, H100).why


def test_padding_is_computed_but_not_moved() -> None:
    norm = all_specs()["rms_norm"].work
    exact, padded = (norm.traffic(KernelConfig({"BLOCK": block})) for block in (4096, 8192))
    assert padded == exact._replace(flops=2 * exact.flops)


def test_chips_agree_with_themselves_and_with_the_compilers_targets() -> None:
    per_clock = {80: 2048, 90: 4096, 100: 8192}  # bfloat16 operations a multiprocessor, as the white papers have them
    for chip in CHIPS.values():
        assert chip.target in TARGETS
        assert chip.flops["bf16"] == pytest.approx(
            chip.multiprocessors * chip.clock_hz * per_clock[chip.target], rel=0.01
        )
        assert chip.flops["int8"] == pytest.approx(2 * chip.flops["bf16"], rel=0.01)
        assert chip.l2_bytes_per_s > chip.memory_bytes_per_s
    assert CHIPS["A100"].l2_bytes_per_s == pytest.approx(5120 * 1.41e9)


def test_a_drivers_name_is_a_chip_or_none() -> None:
    found = {
        name: chip_of(name) for name in ("NVIDIA H200", "NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB", "NVIDIA B200")
    }
    assert [chip and chip.name for chip in found.values()] == ["H200", "H100", "A100", "B200"]
    for name in (
        "NVIDIA H100 PCIe",
        "NVIDIA H100 NVL",
        "NVIDIA A100-SXM4-40GB",
        "NVIDIA GH200 480GB",
        "Tesla T4",
        "NVIDIA A10",
    ):
        assert chip_of(name) is None


def test_every_tile_is_larger_than_nothing() -> None:
    """Each config of the plan covers the result once: as many products as there are tiles, or a little more."""
    for config in CONFIGS:
        traffic = product_traffic(config, 1000, 1000, 1000)
        assert traffic.programs == ceil(1000 / config.blocks["BLOCK_M"]) * ceil(1000 / config.blocks["BLOCK_N"])
        assert 2 * 1000**3 <= traffic.flops <= 1.5 * 2 * 1000**3
