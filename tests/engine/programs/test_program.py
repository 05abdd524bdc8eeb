"""A program writes what the same calls, made by hand, write."""

import json
import re
from typing import Any

import jsonschema
import pytest

from infra_lab import LLM, SamplingParams
from infra_lab.engine.programs import State, UnknownVariableError, program
from infra_lab.errors import InvalidRequestError
from tests.engine.drained import assert_drained
from tests.engine.programs.engines import engine, whole_blocks

GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 10}
SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}, "n": {"enum": [1, 22]}},
    "required": ["ok", "n"],
}


@program(**GREEDY)
def two_steps(s: State, subject: str) -> str:
    s += "Return "
    s += f"the {subject} of"
    s.gen("first")
    s += ". Raises"
    s.gen("second", max_tokens=6)
    return s["second"].upper()


@pytest.mark.parametrize("options", [{}, {"prefix_index": "radix"}, {"enable_prefix_cache": False}], ids=str)
def test_equals_the_calls_by_hand(options: dict[str, Any]) -> None:
    llm = engine(**options)
    run = two_steps.run(llm, "value")

    by_hand = engine()
    prompt = by_hand.encode("Return the value of")
    first = by_hand.generate(prompt, SamplingParams(**GREEDY))[0]
    longer = [*prompt, *first.token_ids, *by_hand.encode(". Raises")]
    second = by_hand.generate(longer, SamplingParams(temperature=0.0, max_tokens=6))[0]

    assert first.finish_reason == second.finish_reason == "length"
    assert (run["first"], run["second"], run.value) == (first.text, second.text, second.text.upper())
    assert run.text == "Return the value of" + first.text + ". Raises" + second.text
    assert run.token_ids == longer + second.token_ids
    assert run.outputs["first"].token_ids == first.token_ids
    assert run.error is None
    assert_drained(llm)


def test_what_has_not_changed_is_not_computed_again() -> None:
    llm = engine()
    run = two_steps.run(llm, "value")
    # 19 bytes; then these, 10 generated and 8 written = 37 tokens, of which the first 28 = 7 blocks of 4 have their KV:
    # the first request computed its prompt and all that it generated but the last token.
    assert run.stats.num_requests == 2
    assert run.stats.prompt_tokens == 19 + 37
    assert run.stats.cached_tokens == 28
    assert run.stats.computed_tokens == 19 + 9
    assert run.stats.generated_tokens == 10 + 6
    assert run.stats.num_steps == 10 + 6 == len(llm.recorder.steps)
    assert run.stats.cached_share == 28 / 56

    again = two_steps.run(llm, "value")
    assert again.text == run.text
    assert again.stats.cached_tokens == whole_blocks(19) + whole_blocks(37)

    uncached = two_steps.run(engine(enable_prefix_cache=False), "value")
    assert (uncached.text, uncached.stats.prompt_tokens) == (run.text, run.stats.prompt_tokens)
    assert (uncached.stats.cached_tokens, uncached.stats.computed_tokens) == (0, 19 + 37)


def test_a_stop_string_is_not_part_of_the_text() -> None:
    llm = engine()
    free = llm.generate("Return a", SamplingParams(temperature=0.0, max_tokens=40))[0].text
    stop = free[10:13]
    assert stop not in free[:12]

    @program(temperature=0.0)
    def stopped(s: State) -> None:
        s += "Return a"
        s.gen("a", max_tokens=40, stop=stop)
        s += "|"
        s.gen(max_tokens=2)

    run = stopped.run(llm)
    assert run["a"] == free[:10]
    assert run.text.startswith("Return a" + free[:10] + "|")
    assert run.token_ids == list(run.text.encode())
    assert set(run.outputs) == {"a"}


def test_the_end_of_sequence_is_not_part_of_the_text() -> None:
    llm = engine()
    [eos, *_] = llm.tokenizer.eos_token_ids

    @program(temperature=0.0, max_tokens=8)
    def ended(s: State) -> None:
        s += "Return a"
        s.gen("a", logit_bias={eos: 1e9})
        s += " b"
        s.gen("b", stop_token_ids=[ord("z")], logit_bias={ord("z"): 1e9})

    run = ended.run(llm)
    assert run.outputs["a"].token_ids == [eos]
    assert (run["a"], run["b"]) == ("", "")
    assert run.token_ids == list(b"Return a b")


def test_constraints_hold() -> None:
    @program(temperature=1.5)
    def constrained(s: State, seed: int) -> None:
        s += "Return a"
        s.gen("word", regex="[a-f]{3,8}", max_tokens=20, seed=seed)
        s += "\n"
        s.gen("json", json_schema=SCHEMA, max_tokens=80, seed=seed)

    runs = constrained.run_batch(engine(), [{"seed": seed} for seed in range(8)])
    assert len({run["word"] for run in runs}) > 3, "the grammar leaves the choice to the model"
    for run in runs:
        assert re.fullmatch("[a-f]{3,8}", run["word"])
        jsonschema.validate(json.loads(run["json"]), SCHEMA)
        assert run.text == f"Return a{run['word']}\n{run['json']}"


def test_control_flow_reads_values(llm: LLM) -> None:
    @program(**GREEDY)
    def loop(s: State) -> list[str]:
        s += "A list"
        found: list[str] = []
        while len("".join(found)) < 12:
            s.gen("part", max_tokens=5)
            found.append(s["part"])
            assert s.text.endswith(s["part"])
        return found

    run = loop.run(llm)
    assert run.value is not None
    assert len(run.value) == run.stats.num_requests == 3
    assert run.text == "A list" + "".join(run.value)
    assert run["part"] == run.value[-1]


def test_a_program_is_a_part_of_another_one(llm: LLM) -> None:
    @program(max_tokens=3)
    def part(s: State, name: str) -> str:
        s += f" {name}:"
        s.gen(name)
        return s[name]

    @program(temperature=0.0, max_tokens=7)
    def whole(s: State) -> list[str]:
        s += "Return"
        pieces = [part(s, "one"), part(s, name="two")]
        s.gen("rest")
        return [*pieces, s["rest"]]

    run = whole.run(llm)
    one, two, rest = run.value or []
    assert (len(one), len(two), len(rest)) == (3, 3, 7)
    assert run.text == f"Return one:{one} two:{two}{rest}"
    assert part.__name__ == "part"


def test_an_unknown_variable_names_those_there_are(llm: LLM) -> None:
    run = two_steps.run(llm, "value")
    with pytest.raises(UnknownVariableError, match=r"'third'.*'first', 'second'"):
        run["third"]

    @program
    def misread(s: State) -> None:
        s += "x"
        s["y"]

    with pytest.raises(UnknownVariableError, match=r"'y'.*none"):
        misread.run(llm)


BAD_GENS: list[tuple[dict[str, Any], str]] = [
    ({"n": 2}, "use fork"),
    ({"max_token": 2}, "no option max_token;.*max_tokens"),
    ({"temperature": -1.0}, "temperature is -1.0"),
    ({"regex": "("}, "is not valid"),
    ({"regex": "a", "json_schema": {}}, "2 grammars"),
]


@pytest.mark.parametrize(("options", "message"), BAD_GENS, ids=str)
def test_wrong_arguments_are_refused_where_they_are_given(llm: LLM, options: dict[str, Any], message: str) -> None:
    refused = []

    @program
    def wrong(s: State) -> None:
        s += "x"
        try:
            s.gen("y", **options)
        except InvalidRequestError as error:
            refused.append(error)
            raise

    with pytest.raises(InvalidRequestError, match=message) as caught:
        wrong.run(llm)
    assert refused == [caught.value]
    assert_drained(llm)


def test_wrong_text_is_refused_where_it_is_written(llm: LLM) -> None:
    @program
    def wrong(s: State, text: Any) -> None:
        s += text

    for text, message in ((7, "is a int; expected str"), ("\ud800", "surrogate")):
        with pytest.raises(InvalidRequestError, match=message):
            wrong.run(llm, text)


def test_what_is_no_program_is_refused(llm: LLM) -> None:
    def generator(s: State) -> Any:
        yield s

    with pytest.raises(InvalidRequestError, match="plain function"):
        program(generator)
    with pytest.raises(InvalidRequestError, match="no parameters"):
        program(lambda: None)  # type: ignore[arg-type, misc]
    with pytest.raises(InvalidRequestError, match="no option heat"):
        program(heat=1.0)(lambda s: None)
    with pytest.raises(InvalidRequestError, match=r"two_steps: missing a required argument: 'subject'"):
        two_steps.run(llm)  # type: ignore[call-arg]
    assert not llm.core.has_work


@pytest.fixture(scope="module")
def llm() -> LLM:
    return engine()
