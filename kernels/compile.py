"""Compiling a kernel for a GPU that is not here: what the compiler made of it, and what it takes of a multiprocessor.

    source ─▶ TTIR ─▶ TTGIR ─▶ LLVM ─▶ PTX ─▶ SASS
             tiles    layouts          virtual  what runs
                                       registers

Registers and spills are what `ptxas -v` reports; the occupancy follows from them, the shared memory and NVIDIA's tables of
limits per multiprocessor (CUDA C++ Programming Guide, "Compute Capabilities").
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernels.spec import KernelConfig, KernelSpec
from kernels.triton_api import HAS_TRITON, KernelUnavailableError, is_interpreting, loaded, triton

WARP = 32


@dataclass(frozen=True, slots=True)
class Multiprocessor:
    """Limits of one multiprocessor."""

    registers: int
    shared_bytes: int
    """That all blocks on it may have together."""
    block_shared_bytes: int
    """That one block may have."""
    warps: int
    blocks: int


TARGETS: Mapping[int, Multiprocessor] = {
    80: Multiprocessor(65_536, 164 << 10, 163 << 10, 64, 32),
    90: Multiprocessor(65_536, 228 << 10, 227 << 10, 64, 32),
    100: Multiprocessor(65_536, 228 << 10, 227 << 10, 64, 32),
}
"""By compute capability × 10: A100, H100 and H200, B200."""
_BLOCK_RESERVE_BYTES = 1024
"""Shared memory that the system takes for each block."""
_REGISTER_GRANULE = 256
"""Registers are handed out in such pieces, a warp at a time."""
_TENSOR_CORE = re.compile(r"\b(wgmma\.mma_async|tcgen05\.mma|mma\.sync)\b")
_COPY = re.compile(r"\b(cp\.async\.bulk|cp\.async)\b")


@dataclass(frozen=True, slots=True)
class Compiled:
    """A kernel for one target."""

    name: str
    target: int
    ttir: str
    ttgir: str
    ptx: str
    cubin: bytes
    registers: int
    """Per thread."""
    spill_bytes: int
    """Stored to local memory for want of registers, per thread."""
    shared_bytes: int
    """Per block (program instance)."""
    num_warps: int

    @property
    def tensor_core_instructions(self) -> frozenset[str]:
        """Which matrix instructions the PTX has: mma.sync (sm_80), wgmma.mma_async (sm_90), tcgen05.mma (sm_100)."""
        return frozenset(_TENSOR_CORE.findall(self.ptx))

    @property
    def copy_instructions(self) -> frozenset[str]:
        """Which asynchronous copies from global to shared memory it has."""
        return frozenset(_COPY.findall(self.ptx))

    @property
    def blocks_per_multiprocessor(self) -> int:
        """How many program instances a multiprocessor holds at once; 0 if not one fits."""
        limits = TARGETS[self.target]
        if self.shared_bytes > limits.block_shared_bytes:
            return 0
        per_warp = -(-self.registers * WARP // _REGISTER_GRANULE) * _REGISTER_GRANULE
        by_registers = limits.registers // (per_warp * self.num_warps)
        by_shared = limits.shared_bytes // (self.shared_bytes + _BLOCK_RESERVE_BYTES)
        return min(by_registers, by_shared, limits.warps // self.num_warps, limits.blocks)

    @property
    def occupancy(self) -> float:
        """Share of the multiprocessor's warps that can be resident, 0 to 1."""
        return self.blocks_per_multiprocessor * self.num_warps / TARGETS[self.target].warps

    def sass(self) -> str:
        """Return the machine code as text, as `cuobjdump` shows it."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "kernel.cubin")
            path.write_bytes(self.cubin)
            return _run(_tool("cuobjdump"), "-sass", str(path))


def compile_kernel(spec: KernelSpec, target: int, config: KernelConfig | None = None) -> Compiled:
    """Compile for a compute capability × 10, with the spec's first config unless another is given. Needs no GPU.

    Raises KernelUnavailableError without Triton or while it interprets (call it in a process without TRITON_INTERPRET),
    ValueError for a target that is unknown or too old for the kernel, and what Triton's compiler raises.
    """
    if not HAS_TRITON or is_interpreting():
        raise KernelUnavailableError("compiling needs Triton, in a process that was started without TRITON_INTERPRET=1")
    if target not in TARGETS:
        raise ValueError(f"there is no target sm_{target}; there are {', '.join(f'sm_{known}' for known in TARGETS)}")
    if target < spec.min_capability:
        raise ValueError(f"{spec.name} needs sm_{spec.min_capability} at least; sm_{target} has not what it uses")
    config = config or spec.configs[0]
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    source = ASTSource(
        fn=loaded(spec.kernel),
        signature={**spec.signature, **dict.fromkeys([*spec.constants, *config.blocks], "constexpr")},
        constexprs={**spec.constants, **config.blocks},
        attrs=_alignment(spec),
    )
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", target, WARP), options=options)
    ptx: str = compiled.asm["ptx"]
    registers, spill_bytes = resources(ptx, target)
    return Compiled(
        name=spec.name,
        target=target,
        ttir=compiled.asm["ttir"],
        ttgir=compiled.asm["ttgir"],
        ptx=ptx,
        cubin=compiled.asm["cubin"],
        registers=registers,
        spill_bytes=spill_bytes,
        shared_bytes=compiled.metadata.shared,
        num_warps=config.num_warps,
    )


def _alignment(spec: KernelSpec) -> dict[tuple[int, ...], list[list[Any]]]:
    """What Triton finds out at a launch by looking at the arguments: which of them can be divided by 16."""
    names, unseen = spec.kernel.arg_names, spec.kernel.do_not_specialize
    return {(names.index(name),): [["tt.divisibility", 16]] for name in spec.aligned if name not in unseen}


def resources(ptx: str, target: int) -> tuple[int, int]:
    """Assemble once more, to be told registers and spilled bytes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.ptx")
        path.write_text(ptx)
        arch = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)
        name = arch.group(1) if arch else f"sm_{target}"
        ptxas = _tool("ptxas-blackwell" if target >= 100 else "ptxas")
        report = _run(ptxas, "-v", f"--gpu-name={name}", str(path), "-o", str(Path(folder, "kernel.cubin")))
    registers = re.search(r"Used (\d+) registers", report)
    spills = re.search(r"(\d+) bytes spill stores", report)
    if registers is None:
        raise RuntimeError(f"ptxas said nothing of registers: {report}")
    return int(registers.group(1)), int(spills.group(1)) if spills else 0


def _tool(name: str) -> str:
    """Return the path of one of the CUDA tools that Triton brings along."""
    folder = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    path = folder / name
    return str(path if path.exists() else folder / name.partition("-")[0])


def _run(*command: str) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{Path(command[0]).name} failed: {done.stderr.strip()}")
    return done.stdout + done.stderr


def main(names: list[str]) -> None:
    """Compile kernels for all targets that can have them, and print a line of JSON for each, as the tests read it."""
    from kernels.registry import all_specs

    specs = all_specs()
    for name in names or specs:
        for target in (known for known in TARGETS if known >= specs[name].min_capability):
            made = compile_kernel(specs[name], target)
            report = {
                "name": name,
                "target": target,
                "registers": made.registers,
                "spill_bytes": made.spill_bytes,
                "shared_bytes": made.shared_bytes,
                "blocks_per_multiprocessor": made.blocks_per_multiprocessor,
                "tensor_core_instructions": sorted(made.tensor_core_instructions),
                "copy_instructions": sorted(made.copy_instructions),
            }
            sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
