"""Choosing among a kernel's configs by measuring them, once a GPU (autotuning; the idea of ATLAS, Whaley and Dongarra 1998).

    tune_launches(lambda: matmul(a, b))                        whatever this launches, at these shapes
    wider = {"matmul": [triton.Config({"BLOCK_M": 256, …}, num_warps=8)]}
    tune_launches(lambda: matmul(a, b), more=wider)            the same in a wider space: only what is new is measured

From then on every process on such a GPU launches what was fastest (see `tuned`). `infra-lab bench kernels --tune` does this for
all shapes of the bench. Times lie in files that can be read (see `tuning_file`).

Tuning synchronizes with the GPU: do it at start-up, not while a CUDA graph is captured.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from kernels.spec import KernelConfig
from kernels.timing import gpu_seconds
from kernels.triton_api import HAS_TRITON, KernelUnavailableError
from kernels.tuned import forget, gpu_of, watch
from kernels.tuning_file import default_cache_dir, describe, file_name, make_header
from kernels.tuning_file import read as _read
from kernels.tuning_file import write as _write

Bench = Callable[[KernelConfig], float]
"""Runs a config and returns how many seconds it took. Raises what Triton raises if the GPU cannot run it."""


def tune_launches(
    call: Callable[[], object],
    *,
    more: Mapping[str, Iterable[Any]] | None = None,
    timer: Callable[[Callable[[KernelConfig], object]], Bench] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[tuple[str, str], KernelConfig]:
    """Measure the configs of all kernels that `call` launches, one after the other; return the fastest by kernel and shape.

    more: further configs by the kernel's name. timer: makes a Bench of a launch, `gpu_timer` by default. A call that changes
    its operands is run many times. Raises what `tune` raises, and what the call raises.
    """
    with watch() as seen:
        call()
    best = {}
    for question in seen.given:
        name = question.tunable.name
        space = question.space(map(as_config, (more or {}).get(name, ())))
        say(f"{name}, {question.shape}: {len(space)} configs")

        def launch(config: KernelConfig, question: Any = question) -> object:
            with watch({question: config}):
                return call()

        bench = (timer or gpu_timer)(launch)
        best[name, question.shape] = tune(
            name, question.tunable.kernels, space, question.shape, bench, gpu=gpu_of(question.device)
        )  # fmt: skip
    forget()
    return best


def tune(
    name: str, kernel: Any, space: Iterable[Any], shape: str, bench: Bench, *,
    gpu: str | None = None, cache_dir: Path | None = None,
) -> KernelConfig:  # fmt: skip
    """Return the fastest config of the space for a shape, measuring only those that the cache does not have.

    kernel: what `jit` returned, its source, or several. space: KernelConfig and triton.Config, mixed; the first of equals wins.
    gpu: its name, by default that of the current one. Raises ValueError for an empty space, and RuntimeError if no config runs.
    """
    configs = [as_config(config) for config in space]
    if not configs:
        raise ValueError(f"the search space of {name} is empty; it must have a config at least")
    header = make_header(gpu or gpu_name(), name, *(kernel if isinstance(kernel, tuple) else (kernel,)))
    path = (cache_dir or default_cache_dir()) / file_name(header)
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


def gpu_timer(launch: Callable[[KernelConfig], object]) -> Bench:
    """Return what measures a launch on the GPU: the median of many runs, each with a cold L2 cache, as in a model."""

    return lambda config: gpu_seconds(lambda: launch(config))


def gpu_name() -> str:
    """Return the current GPU's name. Raises KernelUnavailableError without one."""
    if not torch.cuda.is_available():
        raise KernelUnavailableError("there is no GPU to tune for; pass gpu= and a bench of your own to try it without")
    return torch.cuda.get_device_name()


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
