"""The layer as a graph: what `torch.export` sees, before any compiler touches it (Ansel et al. 2024).

A node is one call of ATen, torch's own set of operations. The graph has no data, but each node carries a tensor that has
shape, dtype and strides without memory (a FakeTensor); where such a tensor shares its input's storage, the node is a view.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from infra_lab.fusion.launches import tensors_in


@dataclass(frozen=True, slots=True)
class GraphNode:
    """One call in an exported graph."""

    name: str
    op: str
    """ATen's name, such as "mul.Tensor"."""
    shape: tuple[int, ...]
    num_bytes: int
    """Of its output."""
    is_view: bool
    """Whether it starts nothing."""


def graph_nodes(module: nn.Module, inputs: Sequence[torch.Tensor]) -> list[GraphNode]:
    """Export module(*inputs) for these shapes; return its calls in their order. Meta tensors will do.

    A call that ATen itself makes of several, such as matmul, is one node: it may copy an input that has an unhandy layout,
    which only `launches.record` sees.
    """
    program = torch.export.export(module, tuple(inputs), strict=False)
    nodes = []
    for node in program.graph.nodes:
        outputs = tensors_in(node.meta.get("val"))
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload) or not outputs:
            continue
        read = {_storage(t) for source in node.all_input_nodes for t in tensors_in(source.meta.get("val"))}
        nodes.append(
            GraphNode(
                name=node.name,
                op=str(node.target).removeprefix("aten."),
                shape=tuple(outputs[0].shape),
                num_bytes=sum(tensor.numel() * tensor.element_size() for tensor in outputs),
                is_view=all(_storage(tensor) in read for tensor in outputs),
            )
        )
    return nodes


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
