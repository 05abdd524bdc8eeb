"""However a request is computed, its tokens are the ones it gets alone: batched, chunked, preempted, cached, forked."""

from typing import Any

import pytest

from infra_lab import SamplingParams
from infra_lab.engine.outputs import RequestOutput
from infra_lab.scheduler.policies import POLICIES
from tests.engine.drained import assert_drained, drain
from tests.engine.tiny_engine import TEXTS, engine

GREEDY = SamplingParams(max_tokens=24, temperature=0.0, ignore_eos=True)
SAMPLED = SamplingParams(max_tokens=24, temperature=0.9, top_p=0.95, seed=7, ignore_eos=True)


@pytest.fixture(scope="module")
def alone() -> dict[str, list[list[int]]]:
    """Tokens of each text when it is the only request and nothing is cached, greedy and sampled."""
    llm = engine(enable_prefix_cache=False)
    return {
        name: [llm.generate([text], params)[0].token_ids for text in TEXTS]
        for name, params in (("greedy", GREEDY), ("sampled", SAMPLED))
    }


def tokens(outputs: list[RequestOutput]) -> list[list[int]]:
    return [output.token_ids for output in outputs]


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="batched"),
        pytest.param({"max_num_seqs": 3}, id="queued"),
        pytest.param({"max_batched_tokens": 16, "max_num_seqs": 8}, id="chunked"),
        pytest.param({"max_batched_tokens": 64, "max_prefill_chunk": 7}, id="capped chunks"),
        pytest.param({"kv_reservation": "whole"}, id="reserved whole"),
        *(
            pytest.param({"policy": name, "max_model_len": 1024}, id=name)
            for name in POLICIES
            if name != "chunked-prefill"
        ),
        pytest.param({"policy": "prefix-aware", "max_num_seqs": 3, "max_batched_tokens": 16}, id="prefix-aware, tight"),
        pytest.param({"block_size": 1, "num_kv_blocks": 4000}, id="blocks of one"),
        pytest.param({"block_size": 64}, id="large blocks"),
        pytest.param({"enable_prefix_cache": False}, id="no prefix cache"),
    ],
)
def test_equals_one_at_a_time(alone: dict[str, list[list[int]]], settings: dict[str, Any]) -> None:
    llm = engine(**settings)
    assert tokens(llm.generate(TEXTS, GREEDY)) == alone["greedy"]
    assert tokens(llm.generate(TEXTS, SAMPLED)) == alone["sampled"]
    mixed = [GREEDY if i % 2 else SAMPLED for i in range(len(TEXTS))]
    expected = [alone["greedy" if i % 2 else "sampled"][i] for i in range(len(TEXTS))]
    assert tokens(llm.generate(TEXTS, mixed)) == expected
    assert_drained(llm)


def test_preempted_equals_one_at_a_time(alone: dict[str, list[list[int]]]) -> None:
    longest = max(len(text) for text in TEXTS) + 24
    for enable_prefix_cache in (True, False):
        llm = engine(num_kv_blocks=-(-longest // 8) + 4, enable_prefix_cache=enable_prefix_cache)
        outputs = llm.generate(TEXTS, GREEDY)
        assert tokens(outputs) == alone["greedy"]
        assert tokens(llm.generate(TEXTS, SAMPLED)) == alone["sampled"]
        assert any(step.preempted for step in llm.recorder.steps), "the cache was meant to be too small"
        assert sum(output.metrics.num_preemptions for output in outputs) > 0
        assert_drained(llm)


def test_prefix_cached_equals_one_at_a_time(alone: dict[str, list[list[int]]]) -> None:
    llm = engine()
    for _ in range(2):
        outputs = llm.generate(TEXTS, GREEDY)
        assert tokens(outputs) == alone["greedy"]
    assert outputs[2].metrics.num_cached_tokens >= len(TEXTS[2]) // 8 * 8 - 8, "the second time it comes from the cache"
    extended = TEXTS[7] + bytes(alone["greedy"][7][:8]).decode(errors="replace")
    again = engine(enable_prefix_cache=False).generate([extended], GREEDY)
    assert tokens(llm.generate([extended], GREEDY)) == tokens(again)
    assert_drained(llm)


def test_cache_salt_keeps_tenants_apart() -> None:
    llm = engine()
    prompt = llm.encode(TEXTS[2])
    hits = []
    for salt in ("a", "a", "b"):
        llm.core.add(prompt, GREEDY, cache_salt=salt)
        deltas = [delta for delta in drain(llm) if delta.finish_reason]
        hits.append(deltas[0].metrics.num_cached_tokens)
    assert hits[0] == 0
    assert hits[1] > 0
    assert hits[2] == 0


@pytest.mark.parametrize(
    "settings", [{}, {"max_num_seqs": 4}, {"num_kv_blocks": 70}, {"enable_prefix_cache": False}], ids=str
)
def test_forked_samples_equal_separate_requests(settings: dict[str, Any]) -> None:
    """n = 4 with one seed: each sample's draws depend on its index alone, so that it can be replayed on its own."""
    params = SamplingParams(n=4, max_tokens=20, temperature=1.0, seed=11, ignore_eos=True)
    llm = engine(**settings)
    prompts = [TEXTS[2][:131], TEXTS[0], TEXTS[7][:64], "A"]
    together = llm.generate(prompts, params)
    if "num_kv_blocks" not in settings and "max_num_seqs" not in settings:  # else the forks find no seat at once
        assert any(step.num_copies for step in llm.recorder.steps), "shared blocks must have been copied on write"
    assert_drained(llm)
    alone = engine(enable_prefix_cache=False)
    for prompt, output in zip(prompts, together, strict=True):
        assert len({tuple(sample.token_ids) for sample in output.samples}) > 1, "samples must differ"
        separately = alone.generate([prompt], params)[0]
        assert [s.token_ids for s in output.samples] == [s.token_ids for s in separately.samples]
        assert output.samples[0].token_ids == alone.generate([prompt], SamplingParams(
            max_tokens=20, temperature=1.0, seed=11, ignore_eos=True))[0].token_ids  # fmt: skip


def test_n_greedy_samples_are_all_the_one_greedy_text(alone: dict[str, list[list[int]]]) -> None:
    params = SamplingParams(n=3, max_tokens=24, temperature=0.0, ignore_eos=True)
    for output, expected in zip(engine().generate(TEXTS, params), alone["greedy"], strict=True):
        assert [sample.token_ids for sample in output.samples] == [expected] * 3


def test_batch_order_does_not_matter(alone: dict[str, list[list[int]]]) -> None:
    backwards = engine().generate(TEXTS[::-1], GREEDY)
    assert tokens(backwards)[::-1] == alone["greedy"]
