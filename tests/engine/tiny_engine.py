"""A small float32 engine, and texts that differ in what batching does to them."""

from typing import Any

from infra_lab import LLM

TEXTS = [
    "The built-in function len returns",
    "class",
    "Return a list of the names in the current scope.  With an object as argument, return its attributes. " * 4,
    "import os\n",
    "The following exceptions are raised by the import system: " * 2,
    "A",
    "user\nWhat is json.dumps?",
    "Raises ValueError if the argument is not a number, or if it is out of range. " * 6,
]


def engine(**settings: Any) -> LLM:
    return LLM("tiny", dtype="float32", device="cpu", **{"kv_cache_bytes": 32 << 20, "block_size": 8, **settings})
