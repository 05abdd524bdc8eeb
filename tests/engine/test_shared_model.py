"""Engines on one loaded model."""

from infra_lab import LLM, SamplingParams
from infra_lab.engine.core import EngineCore
from infra_lab.engine.shared_model import core_with
from tests.engine.tiny_engine import TEXTS, engine

GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)


def test_engines_with_memory_of_their_own_may_run_at_once() -> None:
    llm = engine()
    config = llm.resolved.scheduler
    alone = [_served([core_with(llm, config)], [text], llm)[0] for text in TEXTS[:2]]
    both = [core_with(llm, config), core_with(llm, config, own_memory=True)]
    assert _served(both, TEXTS[:2], llm) == alone
    assert alone[0] != alone[1]


def _served(cores: list[EngineCore], texts: list[str], llm: LLM) -> list[list[int]]:
    """A text to each engine, which step in turn."""
    for core, text in zip(cores, texts, strict=True):
        core.add(llm.encode(text), GREEDY)
    answers = [list[int]() for _ in cores]
    while any(core.has_work for core in cores):
        for core, answer in zip(cores, answers, strict=True):
            answer += [token for delta in core.step() for token in delta.token_ids]
    return answers
