"""Every kernel at a real model's shape, against the ceilings of this GPU and the best that torch has, all in one run.

infra-lab bench kernels --json datasets/measurements/h200/kernels.json
infra-lab bench kernels --tune          the same, after measuring all configs of each kernel; launchers keep what was fastest
"""

from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import chain
from typing import Any

import torch

from infra_lab.bench.kernel_case import Case, Roof
from infra_lab.bench.kernel_cases_compute import compute_cases
from infra_lab.bench.kernel_cases_memory import memory_cases
from infra_lab.bench.kernel_prediction import prediction_of
from infra_lab.bench.report import BenchReport, BenchRow, at_least
from infra_lab.errors import InfraLabError
from kernels.chips import Chip, chip_of
from kernels.predict import BOUND_WORDS
from kernels.timing import gpu_seconds
from kernels.tuning import tune_launches

COPY_BYTES = 1 << 30
MATMUL_SIZE = 8192
FP8 = torch.float8_e4m3fn


def run(*, quick: bool, say: Callable[[str], None], tune: bool = False) -> BenchReport:
    """Measure all rows, in under eight minutes; tuning takes some ten more, once. Raises InfraLabError without a CUDA GPU."""
    if not torch.cuda.is_available():
        raise InfraLabError(
            "the suite kernels needs a CUDA GPU, and torch sees none on this machine: nothing was measured; "
            "KernelExplorer shows what can be known without one"
        )
    device = torch.device("cuda")
    say("the ceilings of this GPU")
    roofs = measure_roofs(device)
    rows = [_ceiling_row(name, value) for name, value in roofs.items()]
    chip = chip_of(torch.cuda.get_device_name(device))
    with torch.inference_mode():
        for case in chain(memory_cases(device, tiny=False), compute_cases(device, tiny=False)):
            say(f"{case.name}, {case.shape}")
            if tune:
                tune_launches(case.ours, say=say)
            try:
                rows += case_rows(case, roofs, lambda function: seconds(function, quick=quick), chip)
            except Exception as error:  # noqa: BLE001 - one kernel that fails must not take the others' figures along
                rows.append(_failed_row(case, error))
    versions = {"torch": torch.__version__, "triton": version("triton"), "gpu": torch.cuda.get_device_name()}
    return BenchReport("kernels", rows, versions=versions)


def seconds(function: Callable[[], Any], *, quick: bool = False) -> float:
    """Median time on the GPU, its cache cold."""
    return gpu_seconds(function, 0.03 if quick else 0.15)


def measure_roofs(device: torch.device) -> dict[Roof, float]:
    """Bytes/s of a device copy (read plus written), and FLOP/s of a large product by dtype, where the GPU has it."""
    source = torch.ones(COPY_BYTES // 4, device=device)
    target = torch.empty_like(source)
    roofs: dict[Roof, float] = {"copy": 2 * COPY_BYTES / seconds(lambda: target.copy_(source))}
    a, b = (torch.randn(MATMUL_SIZE, MATMUL_SIZE, device=device, dtype=torch.bfloat16) for _ in range(2))
    flops = 2 * MATMUL_SIZE**3
    roofs["bfloat16"] = flops / seconds(lambda: a @ b)
    ai, bi = a.to(torch.int8), b.to(torch.int8)
    roofs["int8"] = flops / seconds(lambda: torch._int_mm(ai, bi.t()))
    if torch.cuda.get_device_capability(device) >= (8, 9):
        one = torch.ones((), device=device)
        a8, b8 = a.to(FP8), b.to(FP8).t()
        roofs["float8"] = flops / seconds(
            lambda: torch._scaled_mm(a8, b8, one, one, out_dtype=torch.bfloat16, use_fast_accum=True)
        )
    return roofs


def case_rows(
    case: Case, roofs: dict[Roof, float], time: Callable[[Callable[[], Any]], float], chip: Chip | None = None
) -> Iterator[BenchRow]:
    """Yield a row against the roof, one of what was predicted for the chip, and one against each peer.

    A peer that this GPU has not got is left out, with a word.
    """
    if case.roof not in roofs:
        return
    ours_s = time(case.ours)
    work, unit = (case.cost.num_bytes / 1e9, "GB/s") if case.roof == "copy" else (case.cost.flops / 1e12, "TFLOP/s")
    roof = roofs[case.roof] / (1e9 if case.roof == "copy" else 1e12)
    roof_name = "device copy" if case.roof == "copy" else f"{case.roof} product"
    yield at_least(case.name, work / ours_s, unit, roof_name, roof, case.asked, case.shape)
    predicted = prediction_of(case, chip) if chip else None
    if chip and predicted and predicted.seconds and predicted.bound:
        note = f"predicted from the data sheet of {chip.name}: {BOUND_WORDS[predicted.bound]}"
        yield at_least(
            f"  {case.name}, predicted", work / predicted.seconds, unit, "measured", work / ours_s, None, note
        )
    for peer in case.peers:
        try:
            peer_s = time(peer.run)
        except (RuntimeError, NotImplementedError) as error:
            note = f"{peer.name} does not run here: {str(error).splitlines()[0]}"
            yield BenchRow(
                name=f"  {peer.name}", value=0.0, unit=unit, peer="not measured", peer_value=0.0, ratio=0.0, note=note
            )
            continue
        yield at_least(f"  {case.name}", work / ours_s, unit, peer.name, work / peer_s, peer.asked, case.shape)


def _failed_row(case: Case, error: Exception) -> BenchRow:
    note = f"{case.name} failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return BenchRow(
        name=case.name, value=0.0, unit="", peer="failed", peer_value=0.0, ratio=0.0, is_reached=False, note=note
    )


def _ceiling_row(name: Roof, value: float) -> BenchRow:
    scale, unit = (1e9, "GB/s") if name == "copy" else (1e12, "TFLOP/s")
    what = "a copy of 1 GiB, read plus written" if name == "copy" else f"a product of {MATMUL_SIZE}³, by torch"
    return at_least(f"ceiling: {name}", value / scale, unit, "itself", value / scale, None, what)
