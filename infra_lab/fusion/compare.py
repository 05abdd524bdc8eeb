"""One layer, one shape, everyone who fuses: what each starts and what each moves."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch

from infra_lab.fusion.block import BlockShape, DecoderBlock, block_inputs
from infra_lab.fusion.engine_layer import record_turn
from infra_lab.fusion.inductor import InductorKernel, inductor_kernels
from infra_lab.fusion.launches import ROLES, Recording, record
from infra_lab.fusion.onnx_runtime import OnnxGraph, OnnxModule
from infra_lab.fusion.passes import Kernel, Level, fuse
from infra_lab.models.config import ModelConfig

CACHE = (4, 5)
"""Which of `BlockInputs` are the cache."""


class Traffic(NamedTuple):
    """What a layer starts and moves."""

    name: str
    launches: int
    weight_bytes: int
    cache_bytes: int
    """Of the keys and values as they were, and, in the engine, of those that are written into their place."""
    activation_bytes: int
    """Everything else that goes to memory between kernels; a cache that is copied to grow is among it."""

    @property
    def num_bytes(self) -> int:
        """All of it."""
        return self.weight_bytes + self.cache_bytes + self.activation_bytes


def record_block(
    config: ModelConfig, shape: BlockShape, *, dtype: torch.dtype = torch.bfloat16, block: DecoderBlock | None = None
) -> Recording:
    """Record what the layer launches in eager mode, on the meta device: a few milliseconds at any size."""
    block = block or DecoderBlock(config, dtype=dtype)
    inputs = block_inputs(config, shape, dtype=dtype)
    cache = [inputs[index] for index in CACHE]
    return record(block, inputs, weights=list(block.parameters()), cache=cache)


def traffic(name: str, kernels: Iterable[Kernel]) -> Traffic:
    """Sum up kernels."""
    listed = list(kernels)
    weights, cache, activations = (sum(kernel.bytes_of(role) for kernel in listed) for role in ROLES)
    return Traffic(name, len(listed), weights, cache, activations)


def by_level(config: ModelConfig, shape: BlockShape, level: Level, *, dtype: torch.dtype = torch.bfloat16) -> Traffic:
    """Count the layer at one level of `passes`."""
    return traffic(level, fuse(record_block(config, shape, dtype=dtype), level))


def by_inductor(config: ModelConfig, shape: BlockShape, *, dtype: torch.dtype, device: str = "cpu") -> Traffic:
    """Count what torch.compile makes of the layer on this machine's CPU, or on its GPU."""
    block = DecoderBlock(config, dtype=dtype, device=device)
    inputs = block_inputs(config, shape, dtype=dtype, device=device)
    return inductor_traffic(inductor_kernels(block, inputs, cache=CACHE))


def inductor_traffic(found: Sequence[InductorKernel]) -> Traffic:
    """Sum up Inductor's kernels."""
    weights, cache, activations = (sum(kernel.traffic[role] for kernel in found) for role in ROLES)
    return Traffic("Inductor", len(found), weights, cache, activations)


def by_onnx_runtime(config: ModelConfig, shape: BlockShape) -> Traffic:
    """Count what ONNX Runtime makes of the layer, at its highest level; in float32."""
    block = DecoderBlock(config, dtype=torch.float32, device="cpu")
    inputs = block_inputs(config, shape, dtype=torch.float32, device="cpu")
    return onnx_traffic(OnnxModule(block, inputs).optimized("all"))


def onnx_traffic(graph: OnnxGraph) -> Traffic:
    """Sum up what ONNX Runtime ran; its profiler tells weights apart, and counts the cache among the activations."""
    weights = sum(kernel.weight_bytes for kernel in graph.kernels)
    return Traffic("ONNX Runtime", len(graph.kernels), weights, 0, sum(k.activation_bytes for k in graph.kernels))


def by_engine(
    config: ModelConfig, shape: BlockShape, *, dtype: torch.dtype = torch.bfloat16, fused_start: bool = False
) -> Traffic:
    """Count the engine's own kernels."""
    name = "engine, fused start" if fused_start else "engine"
    return traffic(name, fuse(record_turn(config, shape, dtype=dtype, fused_start=fused_start), "nothing"))


def compare(
    config: ModelConfig, shape: BlockShape, *, dtype: torch.dtype, with_onnx: bool, device: str = "cpu"
) -> list[Traffic]:
    """Count the layer in everyone's hands; ONNX Runtime's figures are of float32 whatever the dtype.

    device: for which Inductor plans. The others' counts are the same everywhere.
    """
    eager = by_level(config, shape, "nothing", dtype=dtype)._replace(name="eager")
    rows = [eager, by_inductor(config, shape, dtype=dtype, device=device)]
    if with_onnx:
        rows.append(by_onnx_runtime(config, shape))
    rows += [by_engine(config, shape, dtype=dtype, fused_start=fused) for fused in (False, True)]
    bound = by_level(config, shape, "everything", dtype=dtype)
    return [*rows, bound._replace(name="bound: one kernel")]


def as_text(rows: Iterable[Traffic]) -> str:
    """Lay the rows out as a table, in units of 1,000,000 bytes."""
    lines = [f"{'':22}{'launches':>10}{'weights':>12}{'cache':>12}{'activations':>14}"]
    for row in rows:
        sizes = [f"{size / 1e6:.2f} MB" for size in row[2:]]
        lines.append(f"{row.name:22}{row.launches:>10}{sizes[0]:>12}{sizes[1]:>12}{sizes[2]:>14}")
    return "\n".join(lines)
