"""Every preset is a working engine, with the mechanisms that it names, and all give the same answers."""

from dataclasses import FrozenInstanceError

import pytest

from infra_lab import LLM, SamplingParams
from infra_lab.engine.config import EngineConfig
from infra_lab.engine.presets import PRESETS, preset
from infra_lab.errors import ConfigError
from tests.engine.drained import assert_drained

GREEDY = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True)
SYSTEM = "You answer questions about Python's standard library, in a sentence or two. "
PROMPTS = [SYSTEM + question for question in ("What is json?", "What is json.dumps?", "What does len return?")]


def engine(**settings: object) -> LLM:
    return LLM("tiny", dtype="float32", device="cpu", max_model_len=512, num_kv_blocks=96, **settings)


@pytest.fixture(scope="module")
def expected() -> list[list[int]]:
    llm = engine(enable_prefix_cache=False)
    return [llm.generate([prompt], GREEDY)[0].token_ids for prompt in PROMPTS]


@pytest.mark.parametrize("name", PRESETS)
def test_answers_are_the_same(name: str, expected: list[list[int]]) -> None:
    llm = engine(**preset(name).settings)
    for _ in range(2):
        assert [output.token_ids for output in llm.generate(PROMPTS, GREEDY)] == expected
    assert_drained(llm)


def test_each_does_what_it_stands_for() -> None:
    engines = {name: engine(**preset(name).settings) for name in PRESETS}
    for llm in engines.values():
        for _ in range(2):
            llm.generate(PROMPTS, GREEDY)
    policies = {name: llm.core.scheduler.policy.name for name, llm in engines.items()}
    assert policies == {
        "fastertransformer-like": "static",
        "orca-like": "continuous",
        "vllm-like": "prefill-first",
        "sglang-like": "prefix-aware",
    }
    finds_prefixes = {name for name, llm in engines.items() if llm.core.scheduler.blocks.stats.hit_tokens}
    assert finds_prefixes == {"sglang-like"}
    assert engines["sglang-like"].core.scheduler.blocks.prefix_index == "radix"
    # From its first step on, one who reserves whole holds what it may come to.
    peak = {name: max(step.used_blocks for step in llm.recorder.steps) for name, llm in engines.items()}
    first = {name: llm.recorder.steps[0].used_blocks for name, llm in engines.items()}
    assert {name for name in PRESETS if first[name] == peak[name]} >= {"fastertransformer-like", "orca-like"}


def test_an_unknown_name_lists_those_there_are() -> None:
    with pytest.raises(
        ConfigError, match="unknown preset 'tgi-like'; known: fastertransformer-like, orca-like, vllm-like"
    ):
        preset("tgi-like")


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_values(name: str) -> None:
    bundle = preset(name)
    with pytest.raises(TypeError):
        bundle.settings["policy"] = "static"  # type: ignore[index]
    with pytest.raises(FrozenInstanceError):
        bundle.name = "other"  # type: ignore[misc]
    EngineConfig(**bundle.settings)
    assert bundle.sources
    assert bundle.differs
