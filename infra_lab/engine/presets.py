"""Known engines as bundles of settings: what sets them apart is which policy, which KV memory and which prefix cache they have.

>>> from infra_lab.engine.presets import preset
>>> llm = LLM("tiny", **preset("sglang-like").settings)

The mechanisms are the real ones, on one model and one set of kernels, so that a comparison shows what *they* do. Sizes (seats,
budget, memory) are not part of a bundle: they belong to the machine. To change one thing of a bundle:

>>> LLM("tiny", **{**preset("vllm-like").settings, "enable_prefix_cache": True})
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from infra_lab.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class EnginePreset:
    """Settings of `EngineConfig` that stand for an engine at some time."""

    name: str
    stands_for: str
    """The engine, with its version or paper, and the year."""
    settings: Mapping[str, Any]
    """Read-only; keyword arguments of `LLM`, `AsyncEngine.start` and `EngineConfig`."""
    differs: str
    """Where the real one does something else."""
    sources: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "settings", MappingProxyType(dict(self.settings)))


_FASTER_TRANSFORMER = EnginePreset(
    name="fastertransformer-like",
    stands_for="FasterTransformer 5, 2021-2023: a batch runs until its last request is done",
    settings={"policy": "static", "kv_reservation": "whole", "enable_prefix_cache": False},
    differs=(
        "The real one is a library that is handed a batch: a server in front of it makes the batches. It keeps the KV of a "
        "batch in one tensor, of the longest length for all; here each request gets the blocks that it may come to, and no "
        "padding is computed."
    ),
    sources=("https://github.com/NVIDIA/FasterTransformer/blob/main/docs/gpt_guide.md",),
)

_ORCA = EnginePreset(
    name="orca-like",
    stands_for="Orca, OSDI 2022: requests come and go at every step, and KV is reserved for the longest that each may get",
    settings={"policy": "continuous", "kv_reservation": "whole", "enable_prefix_cache": False},
    differs=(
        "The real one batches all but attention, which it computes a request at a time; here attention is batched too. It was "
        "never published: what is known of it is the paper."
    ),
    sources=("https://www.usenix.org/conference/osdi22/presentation/yu",),
)

_VLLM = EnginePreset(
    name="vllm-like",
    stands_for="vLLM 0.2, 2023 (PagedAttention, SOSP 2023): paged KV, and prompts go before decodes, in steps of their own",
    settings={"policy": "prefill-first", "kv_reservation": "paged", "enable_prefix_cache": False},
    differs=(
        "The real one could also preempt by swapping KV to CPU memory; here a preempted request is computed again, as was its "
        "default for single sequences. Its cache of prefixes, by hashes of blocks, came in 2024: hence it is off here. What "
        "vLLM became in 2025, with chunked prefill and that cache, are the defaults of `EngineConfig`."
    ),
    sources=(
        "https://arxiv.org/abs/2309.06180",
        "https://github.com/vllm-project/vllm/pull/2762",
        "https://docs.vllm.ai/en/v0.8.0/design/v1/prefix_caching.html",
    ),
)

_SGLANG = EnginePreset(
    name="sglang-like",
    stands_for="SGLang, 2024 (RadixAttention): a radix tree of cached prefixes, and the longest hit comes in first",
    settings={
        "policy": "prefix-aware",
        "kv_reservation": "paged",
        "enable_prefix_cache": True,
        "prefix_index": "radix",
    },
    differs=(
        "The real one has pages of one token by default, and nothing to copy; here blocks keep their size, and one that a "
        "prefix ends in is copied. Chunked prefill is not in the paper: its server has it, and unless told otherwise computes "
        "chunks in steps of their own, where here decodes join them. Its order is by hit alone; here waiting counts too."
    ),
    sources=("https://arxiv.org/abs/2312.07104", "https://github.com/sgl-project/sglang"),
)

PRESETS: Mapping[str, EnginePreset] = MappingProxyType(
    {known.name: known for known in (_FASTER_TRANSFORMER, _ORCA, _VLLM, _SGLANG)}
)
"""By name, the oldest first."""


def preset(name: str) -> EnginePreset:
    """Return the bundle of that name. Raises ConfigError, naming those there are."""
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}; known: {', '.join(PRESETS)}")
    return PRESETS[name]
