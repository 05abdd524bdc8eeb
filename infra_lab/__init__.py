"""Infra Lab: learn how large-model inference works by turning the knobs of a real engine.

>>> from infra_lab import LLM, SamplingParams
>>> llm = LLM("tiny")
>>> llm.generate(["Hello"], SamplingParams(max_tokens=16, temperature=0.0))[0].text
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infra_lab.engine.async_engine import AsyncEngine
    from infra_lab.engine.config import EngineConfig
    from infra_lab.engine.llm import LLM
    from infra_lab.grammar import Grammar
    from infra_lab.sampling_params import SamplingParams

__all__ = ["LLM", "AsyncEngine", "EngineConfig", "Grammar", "SamplingParams"]

_HOMES = {
    "LLM": "infra_lab.engine.llm",
    "AsyncEngine": "infra_lab.engine.async_engine",
    "EngineConfig": "infra_lab.engine.config",
    "Grammar": "infra_lab.grammar",
    "SamplingParams": "infra_lab.sampling_params",
}


def __getattr__(name: str) -> Any:
    """Import the public names when they are first used: `infra-lab --help` should not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'infra_lab' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
