"""What eager mode launches: every operation that reaches torch's dispatcher and is not a mere view, with its bytes.

    with torch.device("meta"): sizes without data, so that a layer of a 70B model is counted in milliseconds

A view (transpose, slice, expand) costs nothing: its result shares the storage of its input. Everything else is a kernel that
reads its inputs from memory and writes its outputs back. An element that is read twice by one kernel is counted once, as if
the cache held it; so these are the least bytes, the ones that a roofline (Williams 2009) counts.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kernels.cost import Cost
from kernels.library import as_operators

Role = Literal["weight", "cache", "activation"]
ROLES: tuple[Role, ...] = get_args(Role)
Kind = Literal["pointwise", "reduction", "product", "kernel"]
"""`kernel`: one of this project's own, a single operation to torch."""

REDUCTIONS = frozenset({"mean", "sum", "amax", "_softmax", "_log_softmax", "var_mean", "native_layer_norm"})
_WRITES_WITHOUT_READING = frozenset({"copy_", "zero_", "fill_"})


class Access(NamedTuple):
    """One tensor, or a region of it, that a kernel reads or writes."""

    buffer: int
    """Which piece of memory: two views of one tensor have the same."""
    role: Role
    num_bytes: int
    region: tuple[int, ...] = ()
    """Offset, sizes and strides: two reads of one region by one kernel are one read."""


@dataclass(frozen=True, slots=True)
class Launch:
    """One kernel that eager mode would start."""

    name: str
    """Unique: the operation's, and its number."""
    kind: Kind
    shape: tuple[int, ...]
    """Of its first output, or, if it has none, of what it writes to."""
    flops: int
    reads: tuple[Access, ...]
    writes: tuple[Access, ...]


class Recording(NamedTuple):
    """All launches of one call, in their order."""

    launches: tuple[Launch, ...]
    num_operations: int
    """Views among them."""
    results: frozenset[int]
    """Buffers that the caller gets back: they must be written, whoever else reads them."""
    buffer_bytes: tuple[int, ...]
    """Size of each buffer, by its number."""


Costs = Mapping[str, Callable[..., Cost]]
"""For operations of this project, by name: what they cost, given their arguments."""


def record(
    function: Callable[..., Any],
    inputs: Sequence[torch.Tensor],
    *,
    weights: Sequence[torch.Tensor],
    cache: Sequence[torch.Tensor],
    costs: Costs | None = None,
) -> Recording:
    """Call function(*inputs) and record what it launches.

    weights and cache: the tensors whose traffic is told apart from that of activations. costs: must have every operation
    of this project that the function calls; what its tensors do not explain of the bytes is traffic of the cache.
    """
    recorder = _Recorder(weights, cache, costs or {})
    with torch.no_grad(), recorder, as_operators():
        results = function(*inputs)
    returned = frozenset(recorder.buffer(tensor) for tensor in tensors_in(results))
    return Recording(tuple(recorder.launches), recorder.num_operations, returned, recorder.buffer_bytes)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, weights: Sequence[torch.Tensor], cache: Sequence[torch.Tensor], costs: Costs) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.launches: list[Launch] = []
        self.num_operations = 0
        self._costs = costs
        self._alive: list[torch.UntypedStorage] = []  # an address that is freed would be given to another tensor
        self._buffers: dict[int, int] = {}
        self._roles: dict[int, Role] = {self.buffer(tensor): "weight" for tensor in weights}
        self._roles |= {self.buffer(tensor): "cache" for tensor in cache}

    def buffer(self, tensor: torch.Tensor) -> int:
        """Number the tensor's storage, the same for all its views."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self._buffers:
            self._buffers[storage._cdata] = len(self._alive)
            self._alive.append(storage)
        return self._buffers[storage._cdata]

    @property
    def buffer_bytes(self) -> tuple[int, ...]:
        return tuple(storage.nbytes() for storage in self._alive)

    def __torch_dispatch__(
        self, op: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        outputs = op(*args, **kwargs)
        read, made = tensors_in((args, kwargs)), tensors_in(outputs)
        self.num_operations += 1
        written = list(_mutated(op, args))
        known = {self.buffer(tensor) for tensor in read}
        new = [tensor for tensor in made if self.buffer(tensor) not in known]
        if read and (written or new):
            self._launch(op, args, kwargs, outputs, read, [*written, *new])
        return outputs

    def _launch(
        self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any,
        read: list[torch.Tensor], written: list[torch.Tensor],
    ) -> None:  # fmt: skip
        name = op._schema.name.split("::")[1]
        if name in _WRITES_WITHOUT_READING:
            read = [tensor for tensor in read if all(tensor is not target for target in written)]
        kind, flops = _kind(op, name), sum(tensor.numel() for tensor in written)
        if kind == "product":
            flops = _formulas()[op.overloadpacket](*args, **kwargs, out_val=outputs)
        reads, writes = self._accesses(read), self._accesses(written)
        if kind == "kernel":
            flops, num_bytes = self._costs[name](*args, **kwargs)
            floats = [tensor for tensor in read if tensor.is_floating_point()]  # the others say where in the cache
            reads, writes = _as_cost_says(num_bytes, self._accesses(floats), writes)
        number = sum(launch.name.rpartition("_")[0] == name for launch in self.launches)
        shape = tuple(written[0].shape)
        self.launches.append(Launch(f"{name}_{number}", kind, shape, flops, reads, writes))

    def _accesses(self, tensors: list[torch.Tensor]) -> tuple[Access, ...]:
        regions: dict[Access, None] = {}
        for tensor in tensors:
            buffer = self.buffer(tensor)
            access = Access(buffer, self._roles.get(buffer, "activation"), _num_bytes(tensor), _region(tensor))
            regions[access] = None
        return tuple(regions)


def _as_cost_says(
    num_bytes: int, reads: tuple[Access, ...], writes: tuple[Access, ...]
) -> tuple[tuple[Access, ...], tuple[Access, ...]]:
    """Give the cache what a kernel's cost leaves for it: from its arguments it would seem to touch all of it."""
    plain_reads, plain_writes = ([access for access in side if access.role != "cache"] for side in (reads, writes))
    left = num_bytes - sum(access.num_bytes for access in (*plain_reads, *plain_writes))
    stored = [access._replace(num_bytes=left) for access in writes if access.role == "cache"]
    loaded = [access._replace(num_bytes=left) for access in reads if access.role == "cache" and not stored]
    return (*plain_reads, *loaded), (*plain_writes, *stored)


@cache
def _formulas() -> Mapping[Any, Callable[..., int]]:
    """Torch's operation counts of products; loaded late, for they bring Triton along, which looks once what it may run on."""
    from torch.utils.flop_counter import flop_registry

    return flop_registry


def _kind(op: Any, name: str) -> Kind:
    if op.namespace == "infra_lab":
        return "kernel"
    if op.overloadpacket in _formulas():
        return "product"
    return "reduction" if name in REDUCTIONS else "pointwise"


def _mutated(op: Any, args: tuple[Any, ...]) -> Iterator[torch.Tensor]:
    for argument, value in zip(op._schema.arguments, args, strict=False):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield from tensors_in(value)


def tensors_in(tree: Any) -> list[torch.Tensor]:
    """Return all tensors in nested lists, tuples and dicts."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _num_bytes(tensor: torch.Tensor) -> int:
    """Bytes of the elements that are really there: an expanded dimension repeats what it has."""
    real = [size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride != 0]
    return math.prod(real) * tensor.element_size()


def _region(tensor: torch.Tensor) -> tuple[int, ...]:
    return (tensor.storage_offset(), *tensor.shape, *tensor.stride())
