"""This machine: processor, memory, GPUs, software versions."""

import os
import platform
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

GIB = 1 << 30
_FLAGS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_vnni": "VNNI",
    "avx512_bf16": "AVX-512 bf16",
    "amx_bf16": "AMX bf16",
    "amx_int8": "AMX int8",
}


@dataclass(frozen=True, slots=True)
class Gpu:
    """One CUDA device."""

    name: str
    memory_bytes: int
    num_sms: int
    capability: str


@dataclass(frozen=True, slots=True)
class Machine:
    """What a measurement must be read with."""

    cpu: str
    num_cores: int
    """Cores that this process may use."""
    instructions: tuple[str, ...]
    """Instruction sets that decide how fast matrices multiply."""
    memory_bytes: int
    gpus: tuple[Gpu, ...]
    python: str
    torch: str
    triton: str | None
    system: str

    @property
    def summary(self) -> str:
        """One line: processor or GPU, cores, memory, versions."""
        gpus = ", ".join(f"{gpu.name} ({gpu.memory_bytes / GIB:.0f} GiB)" for gpu in self.gpus)
        cpu = f"{self.cpu}, {self.num_cores} cores, {self.memory_bytes / GIB:.0f} GiB"
        versions = f"Python {self.python}, torch {self.torch}"
        return " · ".join(part for part in (gpus, cpu, ", ".join(self.instructions), versions) if part)


def describe_machine() -> Machine:
    """Look at this machine; what cannot be found out is left empty."""
    cpu, instructions = _cpu()
    return Machine(
        cpu=cpu,
        num_cores=num_usable_cores(),
        instructions=instructions,
        memory_bytes=_memory("MemTotal"),
        gpus=_gpus(),
        python=platform.python_version(),
        torch=torch.__version__,
        triton=_version("triton"),
        system=f"{platform.system()} {platform.release()}",
    )


def num_usable_cores() -> int:
    """Cores that the scheduler grants this process."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def available_memory_bytes() -> int:
    """Memory that can still be taken without swapping, within the limit of the control group if there is one."""
    available = _memory("MemAvailable")
    limit, used = _cgroup_bytes("memory.max"), _cgroup_bytes("memory.current")
    if limit is not None and used is not None:
        available = min(available, max(0, limit - used))
    return available


def _cgroup_bytes(name: str) -> int | None:
    try:
        return int((Path("/sys/fs/cgroup") / name).read_text())
    except (OSError, ValueError):  # no control group, or "max"
        return None


def _memory(field: str) -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")  # macOS: all there is


def _cpu() -> tuple[str, tuple[str, ...]]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine(), ()
    fields = dict(line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    fields = {name.strip(): value.strip() for name, value in fields.items()}
    flags = set(fields.get("flags", fields.get("Features", "")).split())
    return fields.get("model name", platform.machine()), tuple(name for flag, name in _FLAGS.items() if flag in flags)


def _gpus() -> tuple[Gpu, ...]:
    if not torch.cuda.is_available():
        return ()
    devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return tuple(Gpu(d.name, d.total_memory, d.multi_processor_count, f"{d.major}.{d.minor}") for d in devices)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def platform_cache_dir() -> Path:
    """Where downloads and probe results are kept: $INFRA_LAB_CACHE, or the user's cache folder."""
    if chosen := os.environ.get("INFRA_LAB_CACHE"):
        return Path(chosen)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "infra-lab"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "infra-lab"
