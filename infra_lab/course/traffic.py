"""What attention moves between a processor and its memory: counted on torch's operations, and by formula.

    with CountTraffic() as traffic:        # meta tensors will do: they have sizes and no data
        (query @ key.T).softmax(-1) @ value
    traffic.total_bytes                    # every operation reads its inputs from memory and writes its result there

A tiled kernel loads what its formula says and no more: `kernels.trace` sees each of its loads, and the tests hold the two
against each other. Whether a load that comes again reaches memory or ends in a cache is not known here. Matrix products have
their formula in `kernels.work`.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kernels.cost import Cost

_MOVES_NOTHING = ("empty", "empty_like", "empty_strided", "new_empty", "_unsafe_view", "detach")
"""Beside the views that call themselves so."""


class Moved(NamedTuple):
    """What one operation moved."""

    name: str
    """As torch calls it: "bmm", "_softmax"."""
    read_bytes: int
    written_bytes: int


class CountTraffic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down what torch's operations in the block move, as if nothing stayed in a cache between one and the next."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[Moved] = []

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the operation and note its bytes."""
        result = operation(*args, **(kwargs or {}))
        name = operation._schema.name.partition("::")[2]
        if not operation.is_view and name not in _MOVES_NOTHING:
            self.operations.append(Moved(name, _num_bytes((args, kwargs)), _num_bytes(result)))
        return result

    @property
    def total_bytes(self) -> int:
        """Read and written, of all operations together."""
        return sum(moved.read_bytes + moved.written_bytes for moved in self.operations)


def _num_bytes(tree: Any) -> int:
    return sum(leaf.numel() * leaf.element_size() for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor))


def naive_attention_cost(num_tokens: int, num_heads: int, head_dim: int, dtype_bytes: int) -> Cost:
    """Return the cost of softmax(q · Kᵀ) · V as three operations, without a mask, a KV head for each query head.

    The scores [T, T] are written, read and written by the softmax, and read again. The scale belongs to q and is not counted,
    as little as the exponentials.
    """
    flops = 4 * num_tokens**2 * head_dim * num_heads
    return Cost(flops, num_heads * (4 * num_tokens**2 + 4 * num_tokens * head_dim) * dtype_bytes)


def tiled_attention_cost(num_tokens: int, num_heads: int, head_dim: int, dtype_bytes: int, block: int) -> Cost:
    """Return the same attention by a kernel whose programs take `block` queries and load all keys and values.

    block = num_tokens gives the least there is: every input read once, the result written once.
    """
    visits = -(-num_tokens // block)
    flops = 4 * num_tokens**2 * head_dim * num_heads
    return Cost(flops, num_heads * (2 + 2 * visits) * num_tokens * head_dim * dtype_bytes)
