"""The nodes of a radix tree, and how far two runs of tokens agree."""

from collections.abc import Iterator, Sequence

COMPARED_AT_ONCE = 64
"""Tokens of a slice that is compared in C. Where it differs, at most so many are looked at one by one."""


class Node:
    """One edge of the tree, with what hangs on its end."""

    __slots__ = ("blocks", "children", "key", "parent", "start", "tokens")

    def __init__(
        self,
        parent: "Node | None",
        key: int | str,
        start: int,
        tokens: list[int] | None = None,
        blocks: list[int] | None = None,
    ) -> None:
        self.parent = parent
        """None for a root, whose run is empty."""
        self.key = key
        """What the parent knows it by: its first token; a root's is its cache salt."""
        self.start = start
        """Depth of its first token: how many come before it on the path."""
        self.tokens = [] if tokens is None else tokens
        self.blocks = [] if blocks is None else blocks
        """The blocks that end in this run, in order: one at each border of a block, and a leaf's last, wherever it ends."""
        self.children: dict[int | str, Node] = {}
        """By key."""

    @property
    def end(self) -> int:
        """Depth of the end of its run."""
        return self.start + len(self.tokens)

    def walk(self) -> Iterator["Node"]:
        """Yield this node and all below it."""
        stack = [self]
        while stack:
            node = stack.pop()
            yield node
            stack += node.children.values()

    def walk_blocks(self) -> Iterator[int]:
        """Yield the blocks of this node and of all below it."""
        for node in self.walk():
            yield from node.blocks


def common_length(a: Sequence[int], a_start: int, b: Sequence[int], b_start: int, limit: int) -> int:
    """Return how many tokens agree from `a_start` and `b_start` on, at most `limit`; O(that many)."""
    limit = min(limit, len(a) - a_start, len(b) - b_start)
    done = 0
    while done < limit:
        step = min(COMPARED_AT_ONCE, limit - done)
        i, j = a_start + done, b_start + done
        if a[i : i + step] != b[j : j + step]:
            return done + next(k for k in range(step) if a[i + k] != b[j + k])
        done += step
    return limit
