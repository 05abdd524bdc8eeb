"""Graph fusion by hand: put launches into one kernel where what they pass on can stay on the chip.

    a launch joins the kernels that make its inputs, unless
      - one of the two is of a kind that this level does not fuse, or
      - the way from one to the other leads through a third kernel: then each would have to wait for the other

        norm ─▶ [gate product] ─▶ silu · up ─▶ [down product] ─▶ add          add reads what norm read, but may not join it:
          └───────────────── residual ─────────────────────────▶ ┘            the products in between need norm to be over

What a kernel then reads is what it does not make itself; what it writes is what others read. Each level is a kind of compiler:

    nothing       eager mode
    pointwise     chains of elementwise operations: the first fusing compilers (NNC, XLA's loop fusion)
    reductions    norms and softmax with what is around them: Inductor
    attention     scores, softmax and values in one kernel that never writes the scores: FlashAttention (Dao 2022), by hand
    everything    one kernel a layer: no such kernel exists, but none can move fewer bytes
"""

from collections.abc import Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Literal, get_args

from infra_lab.fusion.launches import Access, Launch, Recording, Role

Level = Literal["nothing", "pointwise", "reductions", "attention", "everything"]
LEVELS: tuple[Level, ...] = get_args(Level)


@dataclass(frozen=True, slots=True)
class Kernel:
    """Launches that became one, and what still goes to memory."""

    launches: tuple[Launch, ...]
    reads: tuple[Access, ...]
    writes: tuple[Access, ...]

    @property
    def flops(self) -> int:
        """Operations, the same as before."""
        return sum(launch.flops for launch in self.launches)

    @property
    def num_bytes(self) -> int:
        """Read and written."""
        return self.bytes_of("weight") + self.bytes_of("cache") + self.bytes_of("activation")

    def bytes_of(self, role: Role) -> int:
        """Bytes of one role, read and written."""
        return sum(access.num_bytes for access in (*self.reads, *self.writes) if access.role == role)

    def seconds(self, bytes_per_s: float, flops_per_s: float) -> float:
        """Time on a machine of these ceilings, whichever binds (Williams 2009)."""
        return max(self.num_bytes / bytes_per_s, self.flops / flops_per_s)


def fuse(recording: Recording, level: Level) -> tuple[Kernel, ...]:
    """Fuse what the level may, and return the kernels in an order in which they can run."""
    launches = recording.launches
    maker = {access.buffer: index for index, launch in enumerate(launches) for access in launch.writes}
    sources = [{maker[a.buffer] for a in launch.reads if maker.get(a.buffer, index) < index}
               for index, launch in enumerate(launches)]  # fmt: skip
    kernel_of = list(range(len(launches)))
    for index in range(len(launches)):
        for source in sorted(sources[index], reverse=True):
            old, new = kernel_of[source], kernel_of[index]
            if old != new and _may_join(launches[source], launches[index], level):
                merged = [old if kernel == new else kernel for kernel in kernel_of]
                if _order(merged, sources):
                    kernel_of = merged
    order = _order(kernel_of, sources)
    return tuple(_kernel(recording, [i for i, of in enumerate(kernel_of) if of == kernel]) for kernel in order)


def _may_join(source: Launch, launch: Launch, level: Level) -> bool:
    return level == "everything" or all(_is_fusible(one, level) for one in (source, launch))


def _is_fusible(launch: Launch, level: Level) -> bool:
    if launch.kind == "pointwise":
        return level != "nothing"
    if launch.kind == "reduction":
        return level in ("reductions", "attention")
    return level == "attention" and launch.name.startswith("bmm")  # the two products of attention, none of a weight


def _order(kernel_of: Sequence[int], sources: Sequence[set[int]]) -> list[int]:
    """Return the kernels so that each comes after those it reads from; none at all if two would wait for each other."""
    waits_for: dict[int, set[int]] = {kernel: set() for kernel in kernel_of}
    for index, kernel in enumerate(kernel_of):
        waits_for[kernel] |= {kernel_of[source] for source in sources[index]} - {kernel}
    try:
        return list(TopologicalSorter(waits_for).static_order())
    except CycleError:
        return []


def _kernel(recording: Recording, indices: Sequence[int]) -> Kernel:
    inside = set(indices)
    launches = tuple(recording.launches[index] for index in indices)
    elsewhere = (launch for index, launch in enumerate(recording.launches) if index not in inside)
    wanted = {access.buffer for launch in elsewhere for access in launch.reads} | recording.results
    made: set[int] = set()
    reads: list[Access] = []
    for launch in launches:
        reads += [access for access in launch.reads if access.buffer not in made]
        made |= {access.buffer for access in launch.writes}
    writes = [a for launch in launches for a in launch.writes if a.buffer in wanted or a.role != "activation"]
    return Kernel(launches, _once(reads, recording), _once(writes, recording))


def _once(accesses: Sequence[Access], recording: Recording) -> tuple[Access, ...]:
    """Count each region once, and of no buffer more than it has, however its regions overlap."""
    merged: dict[int, Access] = {}
    for access in dict.fromkeys(accesses):
        before = merged[access.buffer].num_bytes if access.buffer in merged else 0
        most = max(recording.buffer_bytes[access.buffer], access.num_bytes)
        merged[access.buffer] = access._replace(num_bytes=min(before + access.num_bytes, most))
    return tuple(merged.values())
