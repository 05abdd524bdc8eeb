"""A brute-force audit of a radix tree, by walking all of it."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from infra_lab.paged_kv.integrity import fail
from infra_lab.paged_kv.radix_node import Node


def check_tree(
    roots: Mapping[str, Node],
    block_size: int,
    node_of: Sequence[Node | None],
    held_tokens: Sequence[int],
    num_registered: int,
    ref_counts: Sequence[int],
    eviction_order: Sequence[int],
) -> None:
    """Raise InvariantError unless the tree has the form that `radix_tree` draws, and a path loses its last block first."""
    seen: dict[int, Node] = {}
    rank = {block: position for position, block in enumerate(eviction_order)}
    for salt, root in roots.items():
        if root.tokens or root.blocks or root.parent is not None or root.key != salt or not root.children:
            fail(f"the root of salt {salt!r} has a run, blocks or a parent, or nothing hangs on it")
        for node in root.walk():
            if node is not root:
                _check_node(node, block_size, held_tokens)
            for block in node.blocks:
                if block in seen:
                    fail(f"block {block} stands twice in the radix tree")
                seen[block] = node
            for before, after in _neighbours(node):
                _check_order(before, after, ref_counts, rank)
    registered = {block: node for block, node in enumerate(node_of) if node is not None}
    if seen != registered or len(seen) != num_registered:
        odd = sorted(block for block in seen.keys() | registered.keys() if seen.get(block) is not registered.get(block))
        fail(f"the radix tree holds {len(seen)} blocks and counts {num_registered}; blocks {odd} are elsewhere")
    unregistered = [block for block, held in enumerate(held_tokens) if (held > 0) != (block in seen)]
    if unregistered:
        fail(f"held_tokens and the radix tree differ about blocks {unregistered}")


def _check_node(node: Node, block_size: int, held_tokens: Sequence[int]) -> None:
    where = f"the run of {len(node.tokens)} tokens from {node.start}"
    if not node.tokens or node.key != node.tokens[0]:
        fail(f"{where} does not begin with its key {node.key}")
    for key, child in node.children.items():
        if child.parent is not node or child.key != key or child.start != node.end:
            fail(f"{where} does not fit its child {key}")
    num_borders = node.end // block_size - node.start // block_size
    num_partial = int(not node.children and node.end % block_size > 0)
    if len(node.blocks) != num_borders + num_partial:
        fail(f"{where} crosses {num_borders} borders of blocks, and has {len(node.blocks)} blocks")
    expected = [block_size] * num_borders + [node.end % block_size] * num_partial
    held = [held_tokens[block] for block in node.blocks]
    if held != expected:
        fail(f"blocks {node.blocks} of {where} hold {held} tokens, not {expected}")


def _neighbours(node: Node) -> Iterator[tuple[int, int]]:
    """Yield the pairs of blocks that follow each other on a path, the second of which is this node's."""
    above = node.parent
    while above is not None and not above.blocks:
        above = above.parent
    chain = [*(above.blocks[-1:] if above else ()), *node.blocks]
    yield from pairwise(chain)


def _check_order(before: int, after: int, ref_counts: Sequence[int], rank: Mapping[int, int]) -> None:
    if ref_counts[after] and not ref_counts[before]:
        fail(f"block {after} is in use, and block {before} before it on its path is not")
    if not ref_counts[before] and rank.get(after, -1) > rank.get(before, -1):
        fail(f"block {before} would be evicted before block {after}, which hangs on it")
