"""`select` against the likelihoods that a text's own scoring gives, one choice at a time."""

import random
from typing import Any

import pytest

from infra_lab import LLM, SamplingParams
from infra_lab.engine.programs import Selection, State, program
from infra_lab.engine.scoring import token_logprobs
from infra_lab.errors import InvalidRequestError
from tests.engine.drained import assert_drained
from tests.engine.programs.engines import engine, whole_blocks

WORDS = ["the", "value", "of a", "x", "returned by", "None", " if", "Raises an error", "th", "qzx"]


@pytest.fixture(scope="module")
def llm() -> LLM:
    return engine()


@pytest.fixture(scope="module")
def scorer() -> LLM:
    return engine()


@program
def chosen(s: State, prompt: str, choices: list[str], normalize: bool) -> None:
    s += prompt
    s.select("choice", choices, normalize=normalize)


def selection(llm: LLM, prompt: str, choices: list[str], normalize: bool = True) -> Selection:
    output = chosen.run(llm, prompt, choices, normalize).outputs["choice"]
    assert isinstance(output, Selection)
    return output


def log_likelihood(scorer: LLM, prompt: str, choice: str) -> float:
    token_ids = scorer.encode(prompt + choice)
    return float(token_logprobs(scorer, token_ids)[len(scorer.encode(prompt)) - 1 :].double().sum())


def test_equals_brute_force(llm: LLM, scorer: LLM) -> None:
    rng = random.Random(0)
    winners = set()
    differ = 0
    for _ in range(12):
        prompt = rng.choice(["Return ", "This is ", "A list of ", "def f(x):\n    "])
        choices = rng.sample(WORDS, 5)
        expected = {choice: log_likelihood(scorer, prompt, choice) for choice in choices}
        means = {choice: logprob / len(choice) for choice, logprob in expected.items()}
        for normalize, scores in ((True, means), (False, expected)):
            found = selection(llm, prompt, choices, normalize)
            assert found.logprobs == pytest.approx(expected, rel=1e-4)
            assert found.scores == pytest.approx(scores, rel=1e-4)
            assert found.text == max(choices, key=scores.__getitem__)
            winners.add(found.text)
        differ += max(choices, key=expected.__getitem__) != max(choices, key=means.__getitem__)
    assert len(winners) > 2, "the prompts do not all have the same answer"
    assert differ > 0, "normalisation matters in some of the cases"
    assert_drained(llm)


def test_the_best_whole_wins_over_the_best_first_token(llm: LLM) -> None:
    """What a greedy walk through the choices would miss."""
    first = llm.generate("Return ", SamplingParams(temperature=0.0, max_tokens=1))[0].text
    found = selection(llm, "Return ", [first + "qqqq", "None"], normalize=False)
    assert found.text == "None"
    assert not "None".startswith(first)


def test_goes_on_after_the_choice(llm: LLM) -> None:
    @program(temperature=0.0, max_tokens=6)
    def after(s: State) -> None:
        s += "Return "
        s.select("choice", ["the", "qzx"])
        s.gen("rest")
        assert s["choice"] == "the"

    run = after.run(llm)
    assert run["rest"] == llm.generate("Return the", SamplingParams(temperature=0.0, max_tokens=6))[0].text
    assert run.token_ids == list(run.text.encode())


def test_costs_the_prompt_once_and_each_choice_once() -> None:
    llm = engine()
    prompt, choices = "Return a new object with fields", ["of a type", "x", "to"]
    run = chosen.run(llm, prompt, choices, True)
    assert run.stats.num_requests == 3
    assert run.stats.prompt_tokens == 31 * 3 + 8 + 0 + 1
    assert run.stats.cached_tokens == 2 * whole_blocks(31) == 2 * 28
    computed = sum(step.num_tokens for step in llm.recorder.steps)
    assert computed == run.stats.computed_tokens, "a step a token, and nothing computed twice"
    assert run.stats.num_steps == 9, "as long as the longest choice, which came first"
    assert run.stats.generated_tokens == 0


@pytest.mark.parametrize("options", [{"num_kv_blocks": 12}, {"prefix_index": "radix"}, {"max_num_seqs": 2}], ids=str)
def test_next_to_others_and_in_little_memory(llm: LLM, options: dict[str, Any]) -> None:
    prompt, choices = "Return a new object with fields", ["of a type", "to the end", "returned"]
    expected = selection(llm, prompt, choices)

    @program(temperature=0.0)
    def mixed(s: State) -> None:
        s += prompt
        talker, chooser = s.fork(2)
        talker.gen("talk", max_tokens=12)
        chooser.select("choice", choices)
        s.join([talker, chooser])
        s += chooser["choice"]

    small = engine(**options)
    mixed.run(small)
    run = mixed.run(small)
    assert run.text == prompt + expected.text
    assert_drained(small)


def test_equal_choices_of_a_prompt_keep_their_order(llm: LLM) -> None:
    found = selection(llm, "Return ", ["the", "qzx"])
    assert list(found.logprobs) == ["the", "qzx"]


@pytest.mark.parametrize("choices", [[], ["a", "a"], "ab", ["a", ""]], ids=str)
def test_bad_choices_are_refused(llm: LLM, choices: Any) -> None:
    with pytest.raises(InvalidRequestError, match="choices is"):
        chosen.run(llm, "x", choices, True)


def test_a_choice_beyond_the_context_is_refused() -> None:
    llm = engine(max_model_len=16)
    assert selection(llm, "x" * 12, ["abcd"]).text == "abcd"
    with pytest.raises(InvalidRequestError, match=r"5 tokens after 12 of text.*context of 16") as caught:
        chosen.run(llm, "x" * 12, ["abcde", "ab"], True)
    assert "in select('choice')" in caught.value.__notes__
    assert_drained(llm)
