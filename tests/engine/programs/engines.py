"""The engine that these tests run programs on."""

from typing import Any

from infra_lab import LLM

BLOCK = 4


def engine(**options: Any) -> LLM:
    """The bundled model, a token a byte, with small blocks."""
    settings = {"kv_cache_bytes": 16 << 20, "block_size": BLOCK, **options}
    return LLM("tiny", dtype="float32", device="cpu", **settings)


def whole_blocks(num_tokens: int) -> int:
    """How many of a prompt's tokens the hash index can have: full blocks, and never the last token."""
    return (num_tokens - 1) // BLOCK * BLOCK
