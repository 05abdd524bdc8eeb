"""Prefixes by token: a radix tree whose edges carry runs of tokens and the blocks that end there (RadixAttention, Zheng 2024).

A node stands for the edge above it. Edges part at the token where prompts do, whether or not a block ends there. With blocks
of 4 tokens, two conversations that part within their second block:

    root ── a b c d e f ─┬─ g h i j ── …          each node lists the blocks that end in its run:
              [0]        │   [1]                  block 0 holds a b c d, block 1 holds e f g h,
                         └─ x y z                 block 2 holds e f x y, block 3 holds z and is partly filled
                             [2 3]

A prefix that ends inside a block (a b c d e f, say) is held by the first block that ends below: here 1, or 2. Whoever wants to
go on from there copies it and overwrites the rest. So:

    1. At every border of a block that a path crosses, the block that ends there is registered.
    2. Every leaf ends with a block; a partly filled one stands only at the end of a leaf. Where a path goes on from there, the
       block that holds more replaces it.
    3. No two blocks hold the same prefix: the second to compute it is told to use the first one's.

From 3, whoever holds a block holds all before it on its path, and gives them back in the order of their eviction, the last
block first (`BlockManager.free`): the plain LRU of `FreeList` evicts the least recently used leaf.

Keys and values of a token depend on the tokens up to it alone, so that reuse up to the first other token is exact. In SGLang a
page of more than one token is matched whole or not at all; there pages are of one token by default. Where it loses: `find`
compares every token where the hash index looks up one hash a block, so a long prompt that is looked up again at each step while
it waits costs more here.
"""

from collections.abc import Iterator, Sequence

from infra_lab.paged_kv.prefix_index import NOTHING_ELSE, FoundPrefix, Registration
from infra_lab.paged_kv.radix_check import check_tree
from infra_lab.paged_kv.radix_node import Node, common_length
from infra_lab.paged_kv.sequence import KVSequence


class RadixTree:
    """A `PrefixIndex`: one tree a cache salt."""

    finds_heads = True

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self._block_size = block_size
        self._roots: dict[str, Node] = {}
        self._node_of: list[Node | None] = [None] * num_blocks
        self._held_tokens = [0] * num_blocks
        self._num_registered = 0

    def __len__(self) -> int:
        return self._num_registered

    @property
    def held_tokens(self) -> Sequence[int]:
        """A whole block, or less where it is the partly filled last one of a leaf."""
        return self._held_tokens

    def find(self, seq: KVSequence, max_tokens: int) -> FoundPrefix:
        """Walk down as far as the tokens agree."""
        tokens, size = seq.token_ids, self._block_size
        node, depth, blocks = self._roots.get(seq.cache_salt), 0, list[int]()
        if node is None:
            return FoundPrefix(0, blocks)
        while depth == node.end and depth < max_tokens and (child := node.children.get(tokens[depth])):
            node = child
            depth += common_length(tokens, depth, node.tokens, 0, max_tokens - depth)
            blocks += node.blocks[: depth // size - node.start // size]
        if depth % size:
            blocks.append(_first_block_over(node, depth, size))
        return FoundPrefix(depth, blocks)

    def add(self, seq: KVSequence, num_tokens: int) -> Registration:
        """Walk on from the last registered block; where the path ends, hang the rest on it."""
        tokens, table, size = seq.token_ids, seq.block_table, self._block_size
        depth = seq.num_committed_blocks * size
        node = self._at(seq)
        duplicates: list[tuple[int, int]] = []
        while True:
            offset = depth - node.start
            first = depth // size
            depth += common_length(tokens, depth, node.tokens, offset, num_tokens - depth)
            duplicates += [
                (i, held)
                for i in range(first, depth // size)
                if (held := node.blocks[i - node.start // size]) != table[i]
            ]
            if depth < node.end or depth == num_tokens:
                break
            child = node.children.get(tokens[depth])
            if child is None:
                break
            node = child
        if depth == num_tokens:
            return Registration(duplicates) if duplicates else NOTHING_ELSE
        if depth < node.end:
            node = self._split(node, depth)
        return Registration(duplicates, self._hang(node, tokens[depth:num_tokens], table[depth // size :], num_tokens))

    def remove(self, block: int) -> Sequence[int]:
        """Cut the path before the block: all that hangs on it goes too."""
        node = self._node_of[block]
        if node is None:
            return ()
        size = self._block_size
        position = node.blocks.index(block) if node.blocks[-1] != block else len(node.blocks) - 1
        gone = [*node.blocks[position:], *(below for child in node.children.values() for below in child.walk_blocks())]
        for other in gone:
            self._node_of[other] = None
            self._held_tokens[other] = 0
        self._num_registered -= len(gone)
        del node.blocks[position:]
        node.children.clear()
        self._trim(node, (node.start // size + position) * size)
        return gone

    def clear(self) -> int:
        """Forget everything; return how many blocks were registered."""
        num_blocks = self._num_registered
        self._roots.clear()
        self._node_of = [None] * len(self._node_of)
        self._held_tokens = [0] * len(self._held_tokens)
        self._num_registered = 0
        return num_blocks

    def block_hash(self, block: int) -> bytes | None:
        """None: tokens are compared as they are."""
        del block
        return None

    def token_ids(self, block: int) -> tuple[int, ...]:
        """The block's own tokens; they may begin in the runs above."""
        path = self._path(block)
        held = self._held_tokens[block]
        return tuple(path[-held:]) if held else ()

    def is_of(self, block: int, seq: KVSequence, table_index: int) -> bool:
        """Whether the path to the block's end is how the sequence begins."""
        path, held = self._path(block), self._held_tokens[block]
        is_salted_alike = any(node is self._roots.get(seq.cache_salt) for node in self._ancestors(block))
        starts_there = len(path) - held == table_index * self._block_size
        return is_salted_alike and starts_there and seq.token_ids[: len(path)] == path

    def check(self, ref_counts: Sequence[int], eviction_order: Sequence[int]) -> None:
        """Raise InvariantError unless the rules at the top of this file hold."""
        check_tree(
            self._roots, self._block_size, self._node_of, self._held_tokens, len(self), ref_counts, eviction_order
        )

    def _at(self, seq: KVSequence) -> Node:
        """The node in whose run the registered blocks of a sequence end."""
        if seq.num_committed_blocks:
            node = self._node_of[seq.block_table[seq.num_committed_blocks - 1]]
            assert node is not None, "a sequence of this epoch holds its committed blocks, and they stay registered"
            return node
        return self._roots.setdefault(seq.cache_salt, Node(None, seq.cache_salt, 0))

    def _split(self, node: Node, depth: int) -> Node:
        """Cut a run in two; return the upper part, which is the new node: what was walked is what this costs."""
        offset, size = depth - node.start, self._block_size
        num_above = depth // size - node.start // size
        upper = Node(node.parent, node.key, node.start, node.tokens[:offset], node.blocks[:num_above])
        for block in upper.blocks:
            self._node_of[block] = upper
        assert node.parent is not None, "a root has no run"
        node.parent.children[node.key] = upper
        node.parent, node.start, node.key = upper, depth, node.tokens[offset]
        del node.tokens[:offset], node.blocks[:num_above]
        upper.children[node.key] = node
        return upper

    def _hang(self, node: Node, tokens: list[int], table: list[int], num_tokens: int) -> list[int]:
        """Put tokens and their blocks below the end of a run; a leaf just grows. Return the block that lost its place."""
        size, dropped = self._block_size, list[int]()
        blocks = table[: -(-num_tokens // size) - node.end // size]
        if node.parent is None or node.children:
            child = Node(node, tokens[0], node.end)
            node.children[tokens[0]] = child
            node = child
        elif node.end % size:
            partial = node.blocks.pop()
            self._node_of[partial] = None
            self._held_tokens[partial] = 0
            self._num_registered -= 1
            if partial != blocks[0]:
                dropped.append(partial)
        node.tokens += tokens
        node.blocks += blocks
        for block in blocks:
            self._node_of[block] = node
            self._held_tokens[block] = size
        if num_tokens % size:
            self._held_tokens[blocks[-1]] = num_tokens % size
        self._num_registered += len(blocks)
        return dropped

    def _trim(self, node: Node, end: int) -> None:
        """Shorten a run without children to `end`, or take it away, and then all above that no block ends in any more."""
        while node.parent is not None and not node.children:
            if end > node.start:
                del node.tokens[end - node.start :]
                return
            del node.parent.children[node.key]
            node = node.parent
            end = node.end // self._block_size * self._block_size
        if node.parent is None and not node.children:
            del self._roots[str(node.key)]

    def _ancestors(self, block: int) -> Iterator[Node]:
        node = self._node_of[block]
        while node is not None:
            yield node
            node = node.parent

    def _path(self, block: int) -> list[int]:
        """All tokens from the root to a block's end."""
        runs = [node.tokens for node in self._ancestors(block)]
        path = [token for run in reversed(runs) for token in run]
        node = self._node_of[block]
        if node is not None and self._held_tokens[block] == self._block_size:
            table_index = node.start // self._block_size + node.blocks.index(block)
            del path[(table_index + 1) * self._block_size :]
        return path


def _first_block_over(node: Node, depth: int, size: int) -> int:
    """The block that holds the tokens before `depth`, which is not a border, and ends there or below."""
    position = depth // size - node.start // size
    while position >= len(node.blocks):  # at most to the block's own end
        node = next(iter(node.children.values()))
        position = 0
    return node.blocks[position]
