"""Which elements each program instance of a kernel loads and stores, as Triton's interpreter sees it run.

    with record({"x": x, "y": y}) as accesses:
        rms_norm(x, weight, eps)
    accesses[0]       Access(program=(0, 0, 0), kind="load", tensor="x", offsets=tensor([0, 1, 2, …]))

Masked-out lanes do not count: they touch nothing. Needs a process that interprets (TRITON_INTERPRET=1).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch

from kernels.triton_api import HAS_TRITON, KernelUnavailableError, is_interpreting

Kind = Literal["load", "store"]


class Access(NamedTuple):
    """One load or store of one program instance."""

    program: tuple[int, int, int]
    """`tl.program_id(0)`, (1) and (2)."""
    kind: Kind
    tensor: str
    """Its name; "" if the address lies in none of those that are watched."""
    offsets: torch.Tensor
    """[n] int64: elements from the tensor's first one, in the order of the lanes; addresses in bytes if `tensor` is ""."""


@contextmanager
def record(tensors: Mapping[str, torch.Tensor]) -> Iterator[list[Access]]:
    """Record the accesses of the kernels that run in the block, to these tensors on the CPU and to all else.

    Raises KernelUnavailableError in a process that does not interpret.
    """
    if not (HAS_TRITON and is_interpreting()):
        raise KernelUnavailableError(
            "tracing needs Triton's interpreter: set TRITON_INTERPRET=1 before `kernels` is imported"
        )
    import numpy as np  # which the interpreter computes with
    from triton.runtime.interpreter import interpreter_builder as builder

    accesses: list[Access] = []
    load, store = builder.create_masked_load, builder.create_masked_store

    def note(kind: Kind, pointers: Any, mask: Any) -> None:
        addresses = torch.from_numpy(pointers.data.astype("int64").reshape(-1))
        inside = torch.from_numpy(np.asarray(mask.data).reshape(-1).astype("bool"))  # a tile descriptor's mask is bare
        accesses.extend(by_tensor(builder.grid_idx, kind, addresses[inside.expand_as(addresses)], tensors))

    def watched_load(pointers: Any, mask: Any, *rest: Any, **named: Any) -> Any:
        note("load", pointers, mask)
        return load(pointers, mask, *rest, **named)

    def watched_store(pointers: Any, value: Any, mask: Any, *rest: Any, **named: Any) -> Any:
        note("store", pointers, mask)
        return store(pointers, value, mask, *rest, **named)

    builder.create_masked_load, builder.create_masked_store = watched_load, watched_store
    try:
        yield accesses
    finally:
        del builder.create_masked_load, builder.create_masked_store  # the class's own come back


def by_tensor(
    program: tuple[int, int, int], kind: Kind, addresses: torch.Tensor, tensors: Mapping[str, torch.Tensor]
) -> Iterator[Access]:
    """Sort addresses (bytes) by the tensor that they lie in; yield one access a tensor, and one for what is left."""
    for name, tensor in tensors.items():
        offsets = addresses - tensor.data_ptr()
        extent = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
        mine = (offsets >= 0) & (offsets < extent * tensor.element_size())
        if tensor.numel() and mine.any():
            yield Access(program, kind, name, offsets[mine] // tensor.element_size())
            addresses = addresses[~mine]
    if len(addresses):
        yield Access(program, kind, "", addresses)
