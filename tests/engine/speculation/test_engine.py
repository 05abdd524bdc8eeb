"""Speculation in the engine: the same greedy tokens, the same distribution, whoever proposes, whatever the scheduler does."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

import kernels
from infra_lab import LLM, SamplingParams
from infra_lab.engine.sampling.draw import distributions
from infra_lab.engine.scoring import score_chunks
from infra_lab.engine.speculation import Speculation
from infra_lab.engine.speculation.build import open_draft
from infra_lab.errors import ConfigError
from infra_lab.models.transformer import CausalLM, StepInput
from infra_lab.scheduler.policies import POLICIES
from tests.engine.drained import assert_drained
from tests.engine.test_equivalence import GREEDY, TEXTS, engine, tokens

METHODS = {
    "ngram": Speculation(method="ngram", num_tokens=3, min_ngram=1),
    "early-exit": Speculation(method="early-exit", num_tokens=3),
    "draft": Speculation(method="draft", draft_model="tiny", num_tokens=5),
}


@pytest.fixture(scope="module")
def plain() -> list[list[int]]:
    return tokens(engine(enable_prefix_cache=False).generate(TEXTS, GREEDY))


def counts(llm: LLM) -> tuple[int, int]:
    drafts = [draft for step in llm.recorder.steps for draft in step.drafts]
    return sum(draft.num_proposed for draft in drafts), sum(draft.num_accepted for draft in drafts)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="batched"),
        pytest.param({"max_num_seqs": 3, "max_batched_tokens": 16}, id="chunked"),
        pytest.param({"kv_reservation": "whole", "block_size": 3}, id="reserved whole"),
        pytest.param({"num_kv_blocks": 68, "block_size": 8}, id="preempted"),
        pytest.param({"enable_prefix_cache": False, "block_size": 1, "num_kv_blocks": 4000}, id="blocks of one"),
    ],
)
def test_greedy_tokens_are_the_same(plain: list[list[int]], method: str, settings: dict[str, Any]) -> None:
    llm = engine(speculation=METHODS[method], **settings)
    for _ in range(2):  # the second time prompts come out of the prefix cache, the draft's with the model's
        assert tokens(llm.generate(TEXTS, GREEDY)) == plain
    proposed, accepted = counts(llm)
    assert proposed > accepted > 0 or method == "draft"
    if method == "draft":  # the model itself: nothing that it proposes can be wrong
        assert proposed == accepted > 0
    assert_drained(llm)


@pytest.mark.parametrize("policy", [name for name in POLICIES if name != "chunked-prefill"])
def test_greedy_tokens_are_the_same_under_every_policy(plain: list[list[int]], policy: str) -> None:
    llm = engine(speculation=METHODS["early-exit"], policy=policy, max_model_len=1024)
    assert tokens(llm.generate(TEXTS, GREEDY)) == plain
    assert counts(llm)[1] > 0


def test_it_takes_fewer_steps() -> None:
    steps = {}
    for speculation in (None, METHODS["draft"]):
        llm = engine(speculation=speculation)
        llm.generate(TEXTS[:1], GREEDY)
        steps[speculation is None] = len(llm.recorder.steps)
    assert steps[True] == 24
    assert steps[False] == 1 + -(-23 // 6)  # the prompt, then six tokens a step


@pytest.mark.parametrize("method", ["ngram", "early-exit"])
def test_the_distribution_is_that_of_plain_sampling(method: str) -> None:
    """Three tokens, each one of the two likeliest: 8 texts, 1,500 draws."""
    llm = engine(speculation=METHODS[method], max_num_seqs=64)
    prompt = llm.encode("The class of the class of the ")
    expected: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(3):
        longer: dict[tuple[int, ...], float] = {}
        for text, probability in expected.items():
            *_, last = score_chunks(llm, [*prompt, *text], chunk_tokens=512)
            (probs,) = distributions(last.log_probs[-1:], SamplingParams(temperature=1.3, top_k=2))
            longer |= {(*text, int(i)): probability * probs[i].item() for i in probs.nonzero()}
        expected = longer
    num_draws = 1500
    params = {"max_tokens": 4, "temperature": 1.3, "top_k": 2, "ignore_eos": True}
    outputs = llm.generate(
        [prompt] * num_draws, [SamplingParams(**params, seed=1_000_003 * seed) for seed in range(num_draws)]
    )
    found = Counter(tuple(output.token_ids[:3]) for output in outputs)
    assert set(found) <= set(expected)
    statistic = sum((found[text] - num_draws * p) ** 2 / (num_draws * p) for text, p in expected.items())
    assert statistic < 40.5  # 7 degrees of freedom: exceeded with a probability of 1e-6
    assert counts(llm)[1] > 0


def test_what_changes_logits_is_decoded_plainly() -> None:
    llm = engine(speculation=METHODS["draft"])
    for settings in ({"repetition_penalty": 1.2}, {"logprobs": 2}, {"logit_bias": {5: 1.0}}, {"min_tokens": 4}):
        params = SamplingParams(max_tokens=12, temperature=0.0, **settings)
        expected = engine().generate(TEXTS[:2], params)
        outputs = llm.generate(TEXTS[:2], params)
        assert tokens(outputs) == tokens(expected)
        assert [output.logprobs for output in outputs] == [output.logprobs for output in expected] or outputs[
            0
        ].logprobs
    assert counts(llm) == (0, 0)


def test_it_ends_where_it_would_have_ended() -> None:
    plain, llm = engine(), engine(speculation=METHODS["draft"])
    for settings in (
        {"max_tokens": 1}, {"max_tokens": 2}, {"max_tokens": 7}, {"max_tokens": 30, "stop": ["re"]},
        {"max_tokens": 30, "stop": [" o"], "include_stop": True}, {"max_tokens": 30, "stop_token_ids": [ord("e"), ord(" ")]},
    ):  # fmt: skip
        params = SamplingParams(temperature=0.0, **settings)
        for mine, theirs in zip(llm.generate(TEXTS, params), plain.generate(TEXTS, params), strict=True):
            assert (mine.text, mine.token_ids, mine.finish_reason) == (
                theirs.text,
                theirs.token_ids,
                theirs.finish_reason,
            )
            assert mine.samples[0].stop_reason == theirs.samples[0].stop_reason
            assert mine.metrics.num_output_tokens == len(mine.token_ids)
        assert_drained(llm)


def test_samples_of_one_prompt_and_streams() -> None:
    llm = engine(speculation=METHODS["draft"])
    output = llm.generate([TEXTS[0]], SamplingParams(n=3, temperature=0.0, max_tokens=9, ignore_eos=True))[0]
    expected = engine().generate([TEXTS[0]], SamplingParams(temperature=0.0, max_tokens=9, ignore_eos=True))[0]
    assert [sample.token_ids for sample in output.samples] == [expected.token_ids] * 3
    deltas = list(llm.stream(TEXTS[0], SamplingParams(temperature=0.0, max_tokens=9, ignore_eos=True)))
    assert [token for delta in deltas for token in delta.token_ids] == expected.token_ids
    assert "".join(delta.text for delta in deltas) == expected.text
    assert max(len(delta.token_ids) for delta in deltas) == 6
    assert_drained(llm)


def test_logits_that_are_not_finite_end_one_request() -> None:
    llm = engine(speculation=METHODS["ngram"])
    params = SamplingParams(max_tokens=30, temperature=0.0, ignore_eos=True)
    expected = engine().generate(TEXTS[2:3], params)[0]
    forward = CausalLM.forward

    def broken(self: CausalLM, step: StepInput, kv_caches: Sequence[kernels.KVCache]) -> torch.Tensor:
        logits = forward(self, step, kv_caches)
        return logits * float("nan") if len(step.sample_rows) > 1 else logits  # something was proposed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CausalLM, "forward", broken)
        output = llm.generate(TEXTS[2:3], params)[0]
    assert output.finish_reason == "error"
    assert "a logit is not finite" in (output.samples[0].error or "")
    assert llm.generate(TEXTS[2:3], params)[0].token_ids == expected.token_ids
    assert_drained(llm)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "medusa"}, "unknown speculation 'medusa'; known: ngram, draft, early-exit"),
        ({"method": "ngram", "num_tokens": 0}, "num_tokens of speculation is 0"),
        ({"method": "ngram", "min_ngram": 5}, "min_ngram is 5 and max_ngram 4"),
        ({"method": "draft"}, "'draft' needs one"),
        ({"method": "ngram", "draft_model": "tiny"}, "'draft' needs one"),
        ({"method": "ngram", "exit_layer": 2}, "not 'early-exit'"),
    ],
)
def test_settings_that_contradict(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Speculation(**settings)


def test_settings_that_the_model_has_not() -> None:
    with pytest.raises(ConfigError, match="exit_layer is 99; the model has"):
        engine(speculation=Speculation(method="early-exit", exit_layer=99))
    with pytest.raises(ConfigError, match="'draft' needs one"):
        engine(speculation="draft")


def test_a_draft_that_does_not_fit() -> None:
    speculation, tiny = METHODS["draft"], engine().model.config
    with pytest.raises(ConfigError, match="must share the model's vocabulary"):
        open_draft(speculation, replace(tiny, vocab_size=tiny.vocab_size + 8), 512)
    with pytest.raises(ConfigError, match="lower it, or choose another draft"):
        open_draft(speculation, tiny, 2 * tiny.max_position)
