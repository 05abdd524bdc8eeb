"""GPUs as data: what their makers say they can do. The numbers of a roofline, and of `kernels.predict`.

Peaks are those of dense matrices; data sheets print twice as much, for matrices of which half is zeros (sparsity).

    A100    NVIDIA A100 Tensor Core GPU data sheet (SXM, 80 GB), and the Ampere white paper (2020)
    H100    NVIDIA H100 Tensor Core GPU data sheet (SXM), and the Hopper white paper (2022)
    H200    NVIDIA H200 Tensor Core GPU data sheet (SXM): the H100 with faster memory
    B200    NVIDIA Blackwell data sheet, the column of HGX B200; its multiprocessors are what the CUDA runtime counts

Two numbers are not on data sheets, and hold for all:

    L2 cache    5,120 bytes a clock for 108 multiprocessors (Ampere white paper). NVIDIA has published none for later chips:
                they are given as much a clock and multiprocessor, which is an assumption.
    latency     of memory, 479 clocks on Hopper and 466 on Ampere when nothing else runs (Luo et al. 2024, "Benchmarking and
                Dissecting the Nvidia Hopper GPU Architecture"). Under load requests queue: twice that is an estimate.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Unit = Literal["fp32", "bf16", "fp8", "int8"]
"""What does the arithmetic: CUDA cores (fp32), or tensor cores fed with one of the others."""
_L2_BYTES_PER_CLOCK = 5120 / 108
_LATENCY_CLOCKS = 2 * 479


@dataclass(frozen=True, slots=True)
class Chip:
    """One GPU."""

    name: str
    target: int
    """Compute capability × 10: what kernels are compiled for."""
    multiprocessors: int
    clock_hz: float
    """The clock that the peaks assume: peak / (multiprocessors · operations a clock). Under load a chip is slower."""
    memory_bytes_per_s: float
    flops: Mapping[Unit, float]
    """Operations per second by unit, a multiplication and an addition as two; units that it has not are missing."""

    @property
    def l2_bytes_per_s(self) -> float:
        """What the L2 cache gives all multiprocessors together."""
        return _L2_BYTES_PER_CLOCK * self.multiprocessors * self.clock_hz

    @property
    def latency_s(self) -> float:
        """From a load to its data, with others waiting too."""
        return _LATENCY_CLOCKS / self.clock_hz


_HOPPER: Mapping[Unit, float] = {"fp32": 66.9e12, "bf16": 989.4e12, "fp8": 1978.9e12, "int8": 1978.9e12}
CHIPS: Mapping[str, Chip] = {
    chip.name: chip
    for chip in (
        Chip("A100", 80, 108, 1.41e9, 2.039e12, {"fp32": 19.5e12, "bf16": 312e12, "int8": 624e12}),
        Chip("H100", 90, 132, 1.83e9, 3.35e12, _HOPPER),
        Chip("H200", 90, 132, 1.83e9, 4.8e12, _HOPPER),
        Chip("B200", 100, 148, 1.86e9, 7.7e12, {"fp32": 75e12, "bf16": 2250e12, "fp8": 4500e12, "int8": 4500e12}),
    )
}


def chip_of(gpu_name: str) -> Chip | None:
    """Return the chip that a driver calls so, "NVIDIA H200" or "NVIDIA A100-SXM4-80GB"; None for one that is not listed.

    The PCIe, NVL and 40 GB variants are others than those above: slower clocks, fewer multiprocessors or slower memory.
    """
    words = gpu_name.replace("-", " ").split()
    if {"PCIe", "PCIE", "NVL", "40GB", "GH200"} & set(words):
        return None
    return next((chip for name, chip in CHIPS.items() if name in words), None)
