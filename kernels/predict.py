"""How long a launch should take on a GPU that is not here: a roofline for each thing that can be the bottleneck.

Programs are dealt out to the multiprocessors. The busiest one gets ⌈programs / multiprocessors⌉, and it holds as many at once
as fit (`Compiled.blocks_per_multiprocessor`): so many waves it takes. The longest of four times is the prediction:

    compute    programs of the busiest · operations of one / (peak / multiprocessors)
    memory     bytes that must come from memory / memory bandwidth
    cache      programs of the busiest · bytes of one / (L2 bandwidth / multiprocessors)
    latency    waves · turns of the loop · latency / loads in flight            (Little's law: bandwidth = in flight / latency)

A loop of `num_stages` has num_stages - 1 loads in flight beside the one it works on. So registers and shared memory matter
through what they leave room for: fewer programs at once are more waves, and more waiting.

What it assumes, and where it is wrong:

- Whatever is read again comes from the L2 cache, unless the kernel's traffic says it cannot. Matrices beyond some 50 MB, or
  tiles taken in a bad order, come from memory again: then it is too fast.
- Work and waiting overlap perfectly, all loads are coalesced, and no two threads want one bank of shared memory: too fast.
- Peaks hold. Large products make a GPU lower its clock: too fast by 10 to 30 % where it is compute-bound. Tensor cores on sm_90
  and sm_100 reach their peak with wgmma and tcgen05 only; with mma.sync, as in small tiles, well below.
- Instructions other than the counted operations are free: unpacking of 4-bit weights, softmax between two products, addresses.
- Programs that differ are taken as equal (causal attention); launching, some 3 µs, is left out.

Good for what moves with a block size and by how much; measure (`infra-lab bench kernels`) before you believe it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Literal

from kernels.chips import Chip
from kernels.compile import Compiled
from kernels.spec import KernelConfig
from kernels.work import Traffic, Work

Bound = Literal["compute", "memory", "cache", "latency"]
BOUND_WORDS: Mapping[Bound, str] = {
    "compute": "compute-bound",
    "memory": "memory-bound",
    "cache": "bound by what its programs read again from the L2 cache",
    "latency": "bound by latency: too few loads in flight",
}


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the model says of a launch; `seconds` is None, and `why` a sentence, where it can say nothing."""

    least_s: float | None
    """Of the least cost, at the chip's peaks: the roofline. None if the chip has not the arithmetic."""
    traffic: Traffic | None = None
    times: Mapping[Bound, float] | None = None
    why: str = ""

    @property
    def bound(self) -> Bound | None:
        """What takes longest."""
        return max(self.times.items(), key=lambda item: item[1])[0] if self.times else None

    @property
    def seconds(self) -> float | None:
        """How long the launch takes."""
        return max(self.times.values()) if self.times else None

    @property
    def share(self) -> float | None:
        """Of the roofline, 0 to 1."""
        return self.least_s / self.seconds if self.seconds and self.least_s else None


def predict(work: Work, config: KernelConfig, made: Compiled, chip: Chip) -> Prediction:
    """Predict the launch of `work` with a config that was compiled for the chip's target."""
    if work.unit not in chip.flops:
        return Prediction(None, why=f"{chip.name} has no matrix instructions for {work.unit}.")
    peak = chip.flops[work.unit]
    least_s = max(work.cost.flops / peak, work.cost.num_bytes / chip.memory_bytes_per_s)
    resident = made.blocks_per_multiprocessor
    if not resident:
        return Prediction(least_s, why="It does not fit on a multiprocessor, so it would not run.")
    if made.spill_bytes:
        return Prediction(least_s, why="It spills registers to memory: a traffic that the model does not know.")
    try:
        traffic = work.traffic(config)
    except ValueError as error:
        return Prediction(least_s, why=f"{str(error)[:1].upper()}{str(error)[1:]}.")
    multiprocessors = chip.multiprocessors
    busiest = ceil(traffic.programs / multiprocessors)
    waves = ceil(traffic.programs / (multiprocessors * resident))
    unevenness = busiest * multiprocessors / traffic.programs  # above 1 where some multiprocessors have less to do
    in_flight = max(config.num_stages - 1, 1)
    times: dict[Bound, float] = {
        "compute": unevenness * traffic.flops / peak,
        "memory": max(work.cost.num_bytes, traffic.memory_bytes) / chip.memory_bytes_per_s,
        "cache": unevenness * traffic.num_bytes / chip.l2_bytes_per_s,
        "latency": waves * traffic.turns * chip.latency_s / in_flight,
    }
    return Prediction(least_s, traffic, times)
