"""What Triton would compile for a GPU that is not here: launchers run as they are, on tensors without data.

    python -m tests.kernels.dry_launch keys                  for each kernel with its constants: how often it would be compiled
    python -m tests.kernels.dry_launch compile 90 rms_norm   compiles what a launch at Llama-3-8B's sizes takes

Both print lines of JSON. Triton's own code binds and specializes the arguments; only the driver, which would ask a GPU, is
another one. In a process of its own, without TRITON_INTERPRET: the tests' process interprets.
"""

import json
import sys
from collections import defaultdict
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch

import kernels
from kernels.compile import TARGETS, resources
from kernels.device import DeviceLimits, device_limits
from kernels.triton_api import triton
from tests.kernels.launches import BUILDS, LLAMA

META = torch.device("meta")
TOKENS = (2, 3, 4, 5, 8, 15, 16, 17, 32, 33, 48, 63, 64, 65, 100, 127, 128, 129, 256, 1000, 1024)
MAX_GRID = (2**31 - 1, 65_535, 65_535)


class Driver:
    """Says what the driver of a GPU says before a launch."""

    def __init__(self, target: int) -> None:
        from triton.backends.compiler import GPUTarget

        self._target = GPUTarget("cuda", target, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        return self._target


def pretend(target: int, see: Callable[[Any, Any, Any], None]) -> None:
    """Make launches in this process end before the launch; `see` gets Triton's function, its grid, and what was compiled."""
    from triton.runtime.driver import driver
    from triton.runtime.jit import JITFunction

    driver.set_active(Driver(target))
    run, limits = JITFunction.run, DeviceLimits(target, 132)

    def dry(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        see(self, grid, run(self, *args, grid=grid, warmup=True, **kwargs))

    for name, module in list(sys.modules.items()):
        if name.startswith("kernels.") and getattr(module, "device_limits", None) is device_limits:
            patch.object(module, "device_limits", lambda device: limits).start()
    patch("kernels.operands._INTERPRETED_MULTIPROCESSORS", limits.multiprocessors).start()
    patch("kernels.dispatch.is_interpreting", lambda: True).start()  # or it would refuse tensors that are on no GPU
    patch.object(JITFunction, "run", dry).start()


def launch(name: str, tokens: int) -> None:
    with kernels.use("triton"):
        BUILDS[name](META, LLAMA, tokens, torch.bfloat16).run()


def keys(target: int) -> None:
    """Count, for each kernel with its compile-time constants and dtypes, how often Triton would compile it."""
    found: dict[tuple[str, str], set[str]] = defaultdict(set)

    def note(*, key: str, fn: Any, compile: dict[str, Any], **_: Any) -> bool:
        function = fn.jit_function
        values = {function.params[path[0]].name: value for path, value in compile["constants"].items()}
        # A size that is 1 becomes a constant too: only what was declared as one may make a difference.
        chosen = {p.name: values[p.name] for p in function.params if p.is_constexpr}
        pointers = {name: kind for name, kind in compile["signature"].items() if kind.startswith("*")}
        options = {name: compile[name] for name in ("num_warps", "num_stages")}
        found[function.__name__, str(chosen | pointers | options)].add(key)
        return True  # it need not be compiled

    pretend(target, lambda function, grid, made: None)
    triton.knobs.runtime.jit_cache_hook = note
    for name in BUILDS:
        found.clear()
        for tokens in TOKENS:
            launch(name, tokens)
        for (kernel, constants), several in found.items():
            print(json.dumps({"case": name, "kernel": kernel, "constants": constants, "keys": sorted(several)}))


def compiled(target: int, names: list[str]) -> None:
    """Compile what 512 tokens take."""
    done: set[tuple[str, int]] = set()
    case = ""

    def note(function: Any, grid: Any, made: Any) -> None:
        sizes = (*grid, 1, 1)[:3]
        assert all(0 < size <= most for size, most in zip(sizes, MAX_GRID, strict=True)), sizes
        if (case, id(made)) not in done:
            done.add((case, id(made)))
            registers, spill_bytes = resources(made.asm["ptx"], target)
            fits = made.metadata.shared <= TARGETS[target].block_shared_bytes
            report = {
                "case": case,
                "kernel": function.__name__,
                "registers": registers,
                "spill_bytes": spill_bytes,
                "fits": fits,
            }
            print(json.dumps(report))

    pretend(target, note)
    for case in names:
        launch(case, 512)


if __name__ == "__main__":
    if sys.argv[1] == "keys":
        keys(90)
    else:
        compiled(int(sys.argv[2]), sys.argv[3:] or list(BUILDS))
