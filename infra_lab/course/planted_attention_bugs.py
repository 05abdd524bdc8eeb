"""Real bugs to plant into the flash attention kernel: the learner finds out which property breaks, and which stays.

Each is a line of the online softmax, as it stands in `kernels.attention_tile`, written as somebody has written it. What a bug
does stands in BUGS; a lesson shows that last.
"""

import inspect
import linecache
from collections.abc import Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any, NamedTuple
from unittest.mock import patch

from infra_lab.errors import ConfigError
from kernels import attention_tile, flash_attention
from kernels.triton_api import jit


class PlantedBug(NamedTuple):
    """Lines of the kernel, and what stands there instead."""

    what: str
    edits: tuple[tuple[str, str], ...]


_TOTAL = "total = total * decay + tl.sum(weights, axis=1)"
_ACC = "v, acc * decay[:, None],"
ATTENTION_BUGS: dict[str, PlantedBug] = {
    "none": PlantedBug("the kernel as it is", ()),
    "A": PlantedBug(
        "nothing of the earlier blocks is rescaled to the new maximum",
        ((_TOTAL, "total = total + tl.sum(weights, axis=1)"), (_ACC, "v, acc,")),
    ),
    "B": PlantedBug(
        "the weighted values are rescaled, the sum that divides them is not",
        ((_TOTAL, "total = total + tl.sum(weights, axis=1)"),),
    ),
    "C": PlantedBug(
        "the maximum is that of the new block, not of all that was seen",
        (("tl.maximum(peak, tl.max(scores, axis=1) * log2_scale)", "tl.max(scores, axis=1) * log2_scale"),),
    ),
    "D": PlantedBug(
        "places behind the last key keep their score, which is zero",
        (('scores = tl.where(visible, scores, float("-inf"))', "pass"),),
    ),
}


@contextmanager
def planted_attention_bug(name: str) -> Iterator[None]:
    """Launch `flash_attention` with the bug of that name in the block; "none" plants nothing.

    Raises ConfigError for an unknown name, and if the kernel has not got the line any more that the bug changes.
    """
    if name not in ATTENTION_BUGS:
        raise ConfigError(f"unknown bug {name!r}; known: {', '.join(ATTENTION_BUGS)}")
    tile = _edited(attention_tile.attend_tile, name)
    # A kernel looks its callees up in its globals, and a compiled one only once: so it is a new kernel with globals of its own.
    original = flash_attention._flash_attention.fn
    kernel = jit(FunctionType(original.__code__, {**vars(flash_attention), "attend_tile": tile}, original.__name__))
    with patch.object(flash_attention, "_flash_attention", kernel):
        yield


def _edited(kernel: Any, name: str) -> Any:
    """Return a kernel made of another one's source with a bug's edits in it."""
    source = inspect.getsource(kernel.fn)
    for old, new in ATTENTION_BUGS[name].edits:
        if source.count(old) != 1:
            raise ConfigError(f"bug {name}: {kernel.fn.__name__} has {old!r} {source.count(old)} times; expected once")
        source = source.replace(old, new)
    file = f"<planted attention bug {name}>"
    linecache.cache[file] = (
        len(source),
        None,
        source.splitlines(keepends=True),
        file,
    )  # Triton reads source from there
    scope = dict(vars(attention_tile))
    exec(compile(source, file, "exec"), scope)
    return scope[kernel.fn.__name__]
