"""Greedy tokens are the same with hashes, with a radix tree and with no prefix cache, however prompts begin alike."""

from typing import Any

import pytest

from infra_lab import LLM, SamplingParams
from infra_lab.errors import ConfigError
from infra_lab.paged_kv.snapshot import BlockState
from tests.engine.drained import assert_drained

GREEDY = SamplingParams(max_tokens=10, temperature=0.0, ignore_eos=True)
CACHES: dict[str, dict[str, Any]] = {
    "none": {"enable_prefix_cache": False},
    "hash": {"prefix_index": "hash"},
    "radix": {"prefix_index": "radix"},
}
OPENINGS = ["user\nWhat is json.dumps?\n", "user\nWhat is json.loads?\n", "user\nWhat does len return?\n"]


def engine(**settings: Any) -> LLM:
    return LLM("tiny", dtype="float32", device="cpu", **{"num_kv_blocks": 200, "block_size": 16, **settings})


def converse(llm: LLM, num_turns: int) -> list[list[int]]:
    """Three conversations side by side, each turn a prompt of all before it; and from each a branch, one turn back."""
    texts = [llm.encode(opening) for opening in OPENINGS]
    answers: list[list[int]] = []
    for turn in range(num_turns):
        branches = [text[: len(text) - 7] + llm.encode("Why?") for text in texts]
        outputs = [output.token_ids for output in llm.generate([*texts, *branches], GREEDY)]
        answers += outputs
        question = llm.encode(f"\nuser\nAnd {turn}, then?\n")
        texts = [[*text, *output, *question] for text, output in zip(texts, outputs, strict=False)]
    return answers


@pytest.fixture(scope="module")
def expected() -> list[list[int]]:
    return converse(engine(enable_prefix_cache=False, max_num_seqs=1), 4)


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="ample"),
        pytest.param({"num_kv_blocks": 24}, id="preempted"),
        pytest.param({"block_size": 4, "num_kv_blocks": 70, "max_batched_tokens": 24, "max_num_seqs": 6}, id="chunked"),
        pytest.param({"block_size": 64, "policy": "prefix-aware"}, id="large blocks, prefix-aware"),
        pytest.param({"speculation": "ngram"}, id="speculative"),
    ],
)
def test_multi_turn_and_branching_prompts(cache: str, settings: dict[str, Any], expected: list[list[int]]) -> None:
    llm = engine(**settings, **CACHES[cache])
    assert converse(llm, 4) == expected
    if settings.get("num_kv_blocks") == 24 and cache == "none":
        assert any(step.preempted for step in llm.recorder.steps), "the cache was meant to be too small"
    if cache == "radix":
        assert any(step.num_copies for step in llm.recorder.steps), "prompts were meant to part inside a block"
    assert_drained(llm)


def test_a_radix_tree_computes_less_of_a_conversation() -> None:
    num_computed = {}
    for cache, settings in CACHES.items():
        llm = engine(**settings)
        converse(llm, 5)
        num_computed[cache] = sum(chunk.num_tokens for step in llm.recorder.steps for chunk in step.chunks)
    assert num_computed["radix"] < num_computed["hash"] < num_computed["none"]


def test_a_map_of_the_pool_shows_what_the_tree_holds() -> None:
    llm = engine(prefix_index="radix")
    llm.recorder.keep_kv_maps = True
    prompt = llm.encode("The built-in function len")  # 25 tokens and 9 more / 16 = 2 full blocks + 2
    output = llm.generate([prompt], GREEDY)[0].token_ids
    kv_map = llm.recorder.steps[-1].kv_map
    assert kv_map is not None
    cached = [block for block in kv_map.blocks if block.state is BlockState.CACHED]
    text = [*prompt, *output][:-1]
    assert {block.token_ids for block in cached} == {tuple(text[i : i + 16]) for i in range(0, len(text), 16)}
    assert all(block.is_matchable for block in cached)


def test_an_unknown_index_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown prefix_index 'trie'; known: hash, radix"):
        engine(prefix_index="trie")
