"""Choosing among a kernel's configs by measuring them, once a GPU (autotuning; the idea of ATLAS, Whaley and Dongarra 1998).

    space = SPEC.configs + (triton.Config({"BLOCK_M": 256, …}, num_warps=8),)       widen it as you like
    best = tune("matmul", kernel, space, "4096x4096x4096 bf16", bench)              measures what nobody has measured yet

What was measured is kept under the user's cache folder, a file for each GPU, Triton version and kernel:

    tuning/NVIDIA_H200-triton3.7.1-matmul.json
      {"gpu": …, "triton": …, "kernel": …, "source": "<hash>",
       "seconds": {"4096x4096x4096 bf16": {"BLOCK_M=128 … warps=8 stages=3": 0.000182, "…": null}}}

All times are kept and not only the winner: so a wider space costs only what is new in it, and a learner can read by how much
the best one won. null stands for a config that this GPU cannot run. When the kernel's source changes, its times are stale;
a file that is stale or damaged is set aside with a warning, and written anew.

Tuning synchronizes with the GPU: do it at start-up, not while a CUDA graph is captured.
"""

import hashlib
import json
import math
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from kernels.spec import KernelConfig
from kernels.triton_api import HAS_TRITON, KernelUnavailableError, triton

Bench = Callable[[KernelConfig], float]
"""Runs a config and returns how many seconds it took. Raises what Triton raises if the GPU cannot run it."""
_Times = dict[str, dict[str, float | None]]
"""By shape, then by config."""


def tune(
    name: str, kernel: Any, space: Iterable[Any], shape: str, bench: Bench, *,
    gpu: str | None = None, cache_dir: Path | None = None,
) -> KernelConfig:  # fmt: skip
    """Return the fastest config of the space for a shape, measuring only those that the cache does not have.

    kernel: what `jit` returned, or its source. space: KernelConfig and triton.Config, mixed; the first of equals wins. gpu: its
    name, by default that of the current one. Raises ValueError for an empty space, and RuntimeError if no config runs.
    """
    configs = [as_config(config) for config in space]
    if not configs:
        raise ValueError(f"the search space of {name} is empty; it must have a config at least")
    header = {
        "gpu": gpu or gpu_name(),
        "triton": triton.__version__ if HAS_TRITON else "none",
        "kernel": name,
        "source": source_hash(kernel),
    }
    path = (cache_dir or default_cache_dir()) / _file_name(header)
    times = _read(path, header).get(shape, {})
    new = [config for config in configs if describe(config) not in times]
    for config in new:
        times[describe(config)] = _measure(config, bench)
    if new:
        everything = _read(path, header)  # again, for others may have added to it meanwhile
        everything[shape] = {**everything.get(shape, {}), **times}
        _write(path, header, everything)
    best = min(configs, key=lambda config: _or_never(times[describe(config)]))
    if times[describe(best)] is None:
        raise RuntimeError(f"none of the {len(configs)} configs of {name} runs on {header['gpu']} for {shape}")
    return best


def as_config(config: Any) -> KernelConfig:
    """Return a KernelConfig, or what a triton.Config says as one. Raises TypeError for anything else."""
    if isinstance(config, KernelConfig):
        return config
    if hasattr(config, "kwargs") and hasattr(config, "num_warps"):
        return KernelConfig(dict(config.kwargs), config.num_warps, config.num_stages)
    raise TypeError(f"{config!r} is neither a KernelConfig nor a triton.Config")


def describe(config: KernelConfig) -> str:
    """Return a config in a line: the same for equal ones."""
    blocks = "".join(f"{name}={size} " for name, size in sorted(config.blocks.items()))
    return f"{blocks}warps={config.num_warps} stages={config.num_stages}"


def gpu_timer(launch: Callable[[KernelConfig], object]) -> Bench:
    """Return what measures a launch on the GPU: the median of many runs, each with a cold L2 cache, as in a model."""

    def bench(config: KernelConfig) -> float:
        median_ms: float = triton.testing.do_bench(lambda: launch(config), return_mode="median")
        return median_ms / 1e3

    return bench


def gpu_name() -> str:
    """Return the current GPU's name. Raises KernelUnavailableError without one."""
    if not torch.cuda.is_available():
        raise KernelUnavailableError("there is no GPU to tune for; pass gpu= and a bench of your own to try it without")
    return torch.cuda.get_device_name()


def source_hash(kernel: Any) -> str:
    """Return a short hash of a kernel's source; what it calls is in it, for Triton's own key follows the calls."""
    source = getattr(kernel, "cache_key", None) or getattr(kernel, "src", None) or repr(kernel)
    key = kernel if isinstance(kernel, str) else str(source)
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def default_cache_dir() -> Path:
    """Return where the files are: `tuning` in $INFRA_LAB_CACHE, or in the user's cache folder."""
    if chosen := os.environ.get("INFRA_LAB_CACHE"):
        return Path(chosen) / "tuning"
    mac = Path.home() / "Library" / "Caches"
    caches = mac if sys.platform == "darwin" else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return caches / "infra-lab" / "tuning"


def _file_name(header: dict[str, str]) -> str:
    parts = (header["gpu"], f"triton{header['triton']}", header["kernel"])
    return "-".join(re.sub(r"[^\w.]+", "_", part) for part in parts) + ".json"


def _or_never(seconds: float | None) -> float:
    return math.inf if seconds is None else seconds


def _measure(config: KernelConfig, bench: Bench) -> float | None:
    try:
        seconds = bench(config)
    except _cannot_run() as error:
        warnings.warn(f"{describe(config)} does not run here: {error}", stacklevel=3)
        return None
    if not (seconds >= 0 and math.isfinite(seconds)):
        raise ValueError(f"the bench gave {seconds} for {describe(config)}; it must give seconds")
    return seconds


def _cannot_run() -> tuple[type[Exception], ...]:
    """What Triton raises for too much shared memory, too many registers, or blocks that it cannot compile."""
    if not HAS_TRITON:
        return ()
    from triton.compiler.errors import CompilationError
    from triton.runtime.errors import OutOfResources, PTXASError

    return (OutOfResources, CompilationError, PTXASError)


def _read(path: Path, header: dict[str, str]) -> _Times:
    """Return the times of a file, none if it is not there, or, with a warning, if it is not to be trusted."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        warnings.warn(f"{path} cannot be read, so the kernel is measured anew: {error}", stacklevel=3)
        return {}
    if not isinstance(content, dict) or not _are_times(content.get("seconds")):
        warnings.warn(f"{path} is not a file of the tuner's, so the kernel is measured anew", stacklevel=3)
        return {}
    different = [name for name, value in header.items() if content.get(name) != value]
    if different:
        warnings.warn(f"{path} is stale ({', '.join(different)} changed), so the kernel is measured anew", stacklevel=3)
        return {}
    times: _Times = content["seconds"]
    return times


def _are_times(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(of_shape, dict) and all(seconds is None or _is_time(seconds) for seconds in of_shape.values())
        for of_shape in value.values()
    )


def _is_time(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def _write(path: Path, header: dict[str, str], times: _Times) -> None:
    """Write so that a reader finds the old file or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    try:
        with os.fdopen(handle, "w") as file:
            json.dump({**header, "seconds": times}, file, indent=1)
            file.write("\n")
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
