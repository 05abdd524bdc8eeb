"""What the block manager knows of one sequence: its tokens, and the physical blocks that hold their keys and values."""

from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class KVSequence:
    """A list of tokens with a block table.

    `token_ids` only ever grows at its end: the hashes of its full blocks are computed once and kept, also over a
    preemption. Everything below `cache_salt` belongs to the block manager; others read it.
    """

    token_ids: list[int]
    cache_salt: str = ""
    """Sequences share cached prefixes only with sequences of the same salt (one tenant's prompts stay its own)."""

    block_table: list[int] = field(init=False, default_factory=list)
    """Physical blocks in order: token `i` lies in block `block_table[i // block_size]`, slot `i % block_size`."""
    capacity: int = field(init=False, default=0)
    """Tokens that may be written without asking the manager. The scheduler's hot loop compares with it and no more."""
    block_hashes: list[bytes] = field(init=False, default_factory=list)
    """Chained hashes of the full blocks of `token_ids`, extended when they are first needed."""
    num_committed_blocks: int = field(init=False, default=0)
    """Leading blocks that were already offered to the prefix cache (or came out of it)."""
    cache_epoch: int = field(init=False, default=-1)
    """How often the prefix cache had been reset when the first block was computed: KV from before a reset stays out."""
    num_matched_tokens: int = field(init=False, default=0)
    """Tokens that the latest `open` found in the prefix cache."""
    copied_until: int = field(init=False, default=0)
    """Where the tokens end that the latest copy-on-write copied. Until more are computed, that copy may not be made yet."""
