"""`infra-lab doctor`: is this machine ready, and what can it do?"""

import json
import shutil
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

from infra_lab.hardware.machine import GIB, Machine, available_memory_bytes, describe_machine, platform_cache_dir
from infra_lab.hardware.probes import Ceilings, cached_ceilings

EXTRAS = {"lab": ("jupyterlab", "ipywidgets", "plotly"), "server": ("fastapi", "uvicorn"), "bench": ("transformers",)}


@dataclass(frozen=True, slots=True)
class DoctorReport:
    """What was found, and what to do about it."""

    machine: Machine
    ceilings: Ceilings
    facts: dict[str, str]
    advice: list[str]

    def to_json(self) -> str:
        """The same for programs."""
        content: dict[str, Any] = asdict(self)
        return json.dumps(content, indent=2)


def examine() -> DoctorReport:
    """Look at the machine, measure its ceilings (or take this week's), and check what is installed."""
    machine = describe_machine()
    device = "cuda:0" if machine.gpus else "cpu"
    ceilings = cached_ceilings(device)
    cache = platform_cache_dir()
    existing = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free_bytes = shutil.disk_usage(existing).free
    models = sorted(path.name for path in cache.rglob("*") if path.suffix in (".gguf", ".safetensors"))
    missing = [extra for extra, modules in EXTRAS.items() if any(find_spec(module) is None for module in modules)]
    facts = {
        "machine": machine.summary,
        "memory available": f"{available_memory_bytes() / GIB:.1f} GiB",
        "reads memory at": f"{ceilings.read_bytes_per_s / 1e9:.1f} GB/s ({ceilings.device})",
        "copies at": f"{ceilings.copy_bytes_per_s / 1e9:.1f} GB/s",
        **{
            f"multiplies {name}": f"{flops / 1e12:.2f} TFLOP/s" if flops > 1e12 else f"{flops / 1e9:.0f} GFLOP/s"
            for name, flops in ceilings.matmul_flops.items()
        },
        "triton": machine.triton or "not installed",
        "models in cache": ", ".join(models) or f"none in {cache}",
        "free disk": f"{free_bytes / GIB:.1f} GiB",
        "extras missing": ", ".join(missing) or "none",
    }
    return DoctorReport(machine, ceilings, facts, _advice(machine, models, missing, free_bytes))


def _advice(machine: Machine, models: list[str], missing: list[str], free_bytes: int) -> list[str]:
    advice = []
    if not models:
        advice.append("no model in the cache but the bundled `tiny`: run `infra-lab fetch smollm2-135m`")
    if missing:
        advice.append(f"install what you need of the missing extras, e.g. `pip install 'infra-lab[{missing[0]}]'`")
    if free_bytes < GIB:
        advice.append(f"only {free_bytes / GIB:.1f} GiB of disk are free: a model download needs about 0.3 GiB")
    if not machine.gpus:
        advice.append("no CUDA GPU: everything runs on the CPU, slower but whole")
        if machine.instructions and not any("bf16" in name for name in machine.instructions):
            advice.append("this CPU has no bfloat16 arithmetic: the engine uses float32 by default")
    return advice
