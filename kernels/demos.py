"""Small launches of some kernels, to watch what their program instances touch: a worked example each.

python -m kernels.demos rms_norm        the accesses as JSON (the process must interpret: TRITON_INTERPRET=1)
"""

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from kernels.dispatch import use
from kernels.flash_attention import flash_attention
from kernels.matmul import launch_matmul
from kernels.matmul_plan import MatmulPlan
from kernels.norms import rms_norm
from kernels.softmax import softmax
from kernels.spec import KernelConfig
from kernels.trace import Access, by_tensor, record


class Demo(NamedTuple):
    """A launch on named tensors."""

    inputs: Mapping[str, torch.Tensor]
    run: Callable[[], torch.Tensor]
    """Returns the result, which is called "out"."""


def _rms_norm() -> Demo:
    x, weight = torch.randn(6, 40), torch.randn(40)
    return Demo({"x": x, "weight": weight}, lambda: rms_norm(x, weight, 1e-5))


def _softmax() -> Demo:
    """Several short rows share a program."""
    x = torch.randn(48, 100)
    return Demo({"x": x}, lambda: softmax(x))


def _matmul() -> Demo:
    """In tiles of 32 × 32, three by five of them, in groups of two rows."""
    a, b = torch.randn(96, 64), torch.randn(64, 160)
    tiles = KernelConfig({"BLOCK_M": 32, "BLOCK_N": 32, "BLOCK_K": 32, "GROUP": 2})
    return Demo({"a": a, "b": b}, lambda: launch_matmul(MatmulPlan("plain", tiles), a, b))


def _flash_attention() -> Demo:
    """One head, 256 queries: the causal half of the keys is what a program reads."""
    query, key, value = (torch.randn(256, 1, 16) for _ in range(3))
    starts = torch.tensor([0, 256], dtype=torch.int32)
    return Demo(
        {"query": query, "key": key, "value": value}, lambda: flash_attention(query, key, value, starts, starts, 256)
    )


DEMOS: Mapping[str, Callable[[], Demo]] = {
    "rms_norm": _rms_norm,
    "softmax": _softmax,
    "matmul": _matmul,
    "flash_attention": _flash_attention,
}


def watch(name: str) -> tuple[Mapping[str, torch.Tensor], list[Access]]:
    """Run a demo; return its tensors, the result among them, and all accesses to them in the order in which they happened."""
    demo = DEMOS[name]()
    with use("triton"), record(demo.inputs) as accesses:
        out = demo.run()
    found: list[Access] = []
    for access in accesses:
        found += [access] if access.tensor else by_tensor(access.program, access.kind, access.offsets, {"out": out})
    return {**demo.inputs, "out": out}, [access for access in found if access.tensor]


def report(name: str) -> dict[str, Any]:
    """Run a demo; return the shapes of its tensors and all accesses to them as JSON has them."""
    tensors, accesses = watch(name)
    return {
        "shapes": {name: list(tensor.shape) for name, tensor in tensors.items()},
        "accesses": [(access.program, access.kind, access.tensor, access.offsets.tolist()) for access in accesses],
    }


if __name__ == "__main__":
    json.dump(report(sys.argv[1]), sys.stdout)
