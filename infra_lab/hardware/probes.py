"""Measure this machine: how fast it reads memory, and how fast it multiplies.

These are the two ceilings of a roofline (Williams 2009), and the physical limits that every speed in the lab stands
beside. Each probe takes the best of several runs: noise only ever makes a machine look slower.
"""

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from infra_lab.hardware.machine import describe_machine, platform_cache_dir

BUFFER_BYTES = 256 << 20
"""Larger than any last-level cache, so that reading it means reading memory."""
MAX_AGE_S = 7 * 24 * 3600


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What the machine reached when measured."""

    device: str
    read_bytes_per_s: float
    """Streaming reads: the best of summing a large buffer and multiplying a large matrix by a vector. Which of the two a
    library does faster depends on its version; what memory can deliver is at least the larger."""
    copy_bytes_per_s: float
    """Bytes read plus bytes written."""
    matmul_flops: dict[str, float]
    """FLOP/s of a large square product, by dtype."""


def measure_ceilings(device: str = "cpu", *, quick: bool = False) -> Ceilings:
    """Measure now; about a second, less with `quick`, which skips the matrix products."""
    target = torch.device(device)
    repeats = 2 if quick else 4
    floats = torch.ones(BUFFER_BYTES // 4, device=target)
    halves = torch.ones(BUFFER_BYTES // 2 // 4096, 4096, dtype=torch.bfloat16, device=target)
    vector = torch.ones(1, 4096, dtype=torch.bfloat16, device=target)
    sum_s = _best_s(lambda: floats.sum(), target, repeats)
    product_s = _best_s(lambda: torch.nn.functional.linear(vector, halves), target, repeats)
    copy = torch.empty_like(floats)
    copy_s = _best_s(lambda: copy.copy_(floats), target, repeats)
    flops = {} if quick else {name: _matmul_flops(dtype, target) for name, dtype in _dtypes(target).items()}
    return Ceilings(str(target), BUFFER_BYTES / min(sum_s, product_s), 2 * BUFFER_BYTES / copy_s, flops)


def _dtypes(device: torch.device) -> dict[str, torch.dtype]:
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}


def _matmul_flops(dtype: torch.dtype, device: torch.device) -> float:
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(2))
    return 2 * size**3 / _best_s(lambda: a @ b, device, 3)


def _best_s(function: Callable[[], object], device: torch.device, repeats: int) -> float:
    function()
    best = float("inf")
    for _ in range(repeats):
        _synchronize(device)
        begin = time.perf_counter()
        function()
        _synchronize(device)
        best = min(best, time.perf_counter() - begin)
    return best


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def cached_ceilings(device: str = "cpu") -> Ceilings:
    """Return the ceilings of this machine, measured at most a week ago with this torch; measure them if need be."""
    path = platform_cache_dir() / "ceilings.json"
    machine = describe_machine()
    key = f"{device}|{machine.cpu}|{machine.num_cores}|{torch.get_num_threads()}|{machine.torch}"
    key += "|" + ",".join(gpu.name for gpu in machine.gpus)
    known = _read(path)
    entry = known.get(key)
    if entry is not None and time.time() - entry["measured_at"] < MAX_AGE_S:
        return Ceilings(**entry["ceilings"])
    ceilings = measure_ceilings(device)
    known[key] = {"measured_at": time.time(), "ceilings": asdict(ceilings)}
    _write(path, known)
    return ceilings


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):  # absent or damaged: it is only a cache
        return {}
    return content if isinstance(content, dict) else {}


def _write(path: Path, content: object) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(content, indent=1))
        os.replace(partial, path)
    except OSError:  # a read-only home folder costs a second a run, no more
        partial.unlink(missing_ok=True)
