"""The files in which measured times are kept: one for each GPU, Triton version and kernel, under the user's cache folder.

    tuning/NVIDIA_H200-triton3.7.1-matmul.json
      {"gpu": …, "triton": …, "kernel": …, "source": "<hash>",
       "seconds": {"M=4096 N=4096 K=4096 …": {"BLOCK_M=128 … warps=8 stages=3": 0.000182, "…": null}}}

All times are kept and not only the winner: so a wider space costs only what is new in it, and a learner can read by how much
the best one won. null stands for a config that this GPU cannot run. When the kernel's source changes, its times are stale;
a file that is stale or damaged is set aside with a warning.
"""

import hashlib
import inspect
import json
import math
import os
import re
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

from kernels.spec import KernelConfig
from kernels.triton_api import HAS_TRITON, triton

Times = dict[str, dict[str, float | None]]
"""By shape, then by config."""


def describe(config: KernelConfig) -> str:
    """Return a config in a line: the same for equal ones."""
    blocks = "".join(f"{name}={size} " for name, size in sorted(config.blocks.items()))
    return f"{blocks}warps={config.num_warps} stages={config.num_stages}"


def parse(text: str) -> KernelConfig:
    """Return the config that `describe` made a line of. Raises ValueError for any other text."""
    sizes = {name: int(size) for name, size in re.findall(r"(\w+)=(\d+)(?= |$)", text)}
    if list(sizes)[-2:] != ["warps", "stages"] or len(sizes) != len(text.split()):
        raise ValueError(f"{text!r} is no config; it must be sizes by name, and end in warps and stages")
    num_warps, num_stages = sizes.pop("warps"), sizes.pop("stages")
    return KernelConfig(sizes, num_warps, num_stages)


def make_header(gpu: str, name: str, *kernels: Any) -> dict[str, str]:
    """Return what a file must say of itself to be believed."""
    version = triton.__version__ if HAS_TRITON else "none"
    return {"gpu": gpu, "triton": version, "kernel": name, "source": source_hash(*kernels)}


def source_hash(*kernels: Any) -> str:
    """Return a short hash of kernels' source, or of texts; what they call is in it, for Triton's own key follows the calls."""
    return hashlib.sha256("".join(map(_source, kernels)).encode()).hexdigest()[:16]


def _source(kernel: Any) -> str:
    if isinstance(kernel, str):
        return kernel
    return str(getattr(kernel, "cache_key", None) or inspect.getsource(kernel.fn))  # interpreted, there is no key


def default_cache_dir() -> Path:
    """Return where the files are: `tuning` in $INFRA_LAB_CACHE, or in the user's cache folder."""
    if chosen := os.environ.get("INFRA_LAB_CACHE"):
        return Path(chosen) / "tuning"
    mac = Path.home() / "Library" / "Caches"
    caches = mac if sys.platform == "darwin" else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return caches / "infra-lab" / "tuning"


def file_name(header: dict[str, str]) -> str:
    """Return the name of the file with this header."""
    parts = (header["gpu"], f"triton{header['triton']}", header["kernel"])
    return "-".join(re.sub(r"[^\w.]+", "_", part) for part in parts) + ".json"


def read(path: Path, header: dict[str, str], so: str = "the kernel is measured anew") -> Times:
    """Return the times of a file; none if it is not there or, with a warning of what follows, if it is not to be trusted."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        warnings.warn(f"{path} cannot be read, so {so}: {error}", stacklevel=3)
        return {}
    if not isinstance(content, dict) or not _are_times(content.get("seconds")):
        warnings.warn(f"{path} is not a file of the tuner's, so {so}", stacklevel=3)
        return {}
    different = [name for name, value in header.items() if content.get(name) != value]
    if different:
        warnings.warn(f"{path} is stale ({', '.join(different)} changed), so {so}", stacklevel=3)
        return {}
    times: Times = content["seconds"]
    return times


def _are_times(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(of_shape, dict) and all(seconds is None or _is_time(seconds) for seconds in of_shape.values())
        for of_shape in value.values()
    )


def _is_time(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def write(path: Path, header: dict[str, str], times: Times) -> None:
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
