"""`response_format` and `structured_outputs`: what comes out parses."""

import json
import re
import threading
from typing import Any

import openai
import pytest

from infra_lab.grammar import Grammar
from tests.server.live import WAIT_S, Live

pytest.importorskip("xgrammar")
ASK: list[Any] = [{"role": "user", "content": "A person?"}]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("seed", range(4))
def test_a_json_schema(tiny: Live, seed: int) -> None:
    response_format: Any = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}
    settings: dict[str, Any] = {"model": "sim", "messages": ASK, "seed": seed, "temperature": 1.5, "max_tokens": 200}
    choice = tiny.openai().chat.completions.create(**settings, response_format=response_format).choices[0]
    assert choice.finish_reason == "stop"
    person = json.loads(choice.message.content or "")
    assert set(person) == {"name", "age"}
    assert 0 <= person["age"] <= 99
    chunks = tiny.openai().chat.completions.create(**settings, response_format=response_format, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == choice.message.content


def test_vllms_constraints(tiny: Live) -> None:
    def text(**constraint: Any) -> str:
        body = {"structured_outputs": constraint}
        answer = tiny.openai().completions.create(model="sim", prompt="x", max_tokens=60, seed=3, extra_body=body)
        return answer.choices[0].text

    assert re.fullmatch(r"[0-9]{4}-[0-9]{2}", text(regex=r"[0-9]{4}-[0-9]{2}"))
    assert text(choice=['say "hi"', "naïve\n", "back\\slash"]) in ('say "hi"', "naïve\n", "back\\slash")
    assert text(grammar='root ::= "ab" | "cd"') in ("ab", "cd")
    assert set(
        json.loads(text(json={"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}))
    ) == {"a"}


@pytest.mark.parametrize(
    ("constraint", "pattern"),
    [
        (
            {"guided_json": {"type": "object", "properties": {"a": {"const": 7}}, "required": ["a"]}},
            r'\{\s*"a"\s*:\s*7\s*\}',
        ),
        ({"guided_json": '{"enum": [12, 34]}'}, "12|34"),
        ({"guided_regex": "[0-9]{4}-[0-9]{2}"}, "[0-9]{4}-[0-9]{2}"),
        ({"guided_choice": ["one", 'the "other"']}, 'one|the "other"'),
        ({"guided_grammar": 'root ::= "ab" | "cd"', "guided_json": None}, "ab|cd"),
    ],
)
def test_vllms_older_names(tiny: Live, constraint: dict[str, Any], pattern: str) -> None:
    """They were ignored: a client got any text where it had asked for a date."""
    for path, prompt in (("/v1/completions", {"prompt": "x"}), ("/v1/chat/completions", {"messages": ASK})):
        answer = tiny.post(path, **prompt, **constraint, max_tokens=60, seed=3).json()["choices"][0]
        assert re.fullmatch(pattern, answer.get("text") or answer["message"]["content"])


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_choice": "abc"}, "guided_choice"),
        ({"guided_regex": "a", "guided_choice": ["b"]}, "guided_regex"),
        ({"guided_regex": "a", "structured_outputs": {"json": {}}}, "structured_outputs"),
        ({"guided_json": {}, "response_format": {"type": "json_object"}}, "guided_json"),
    ],
)
def test_a_bad_one_under_an_older_name_is_refused_by_that_name(tiny: Live, extra: Any, param: str) -> None:
    error = tiny.post("/v1/completions", prompt="x", **extra).json()["error"]
    assert error["param"] == param
    assert all(name in error["message"] for name in extra)


def test_streams_go_on_while_a_big_grammar_compiles(tiny: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was compiled between two steps: twenty thousand words to choose from, and nobody got a token for five seconds."""
    grammars = tiny.engine.core.grammars
    begun, gate, compile_now = threading.Event(), threading.Event(), grammars._compile

    def compile_late(grammar: Grammar) -> Any:
        if "big" in grammar.source:
            begun.set()
            assert gate.wait(WAIT_S)
        return compile_now(grammar)

    monkeypatch.setattr(grammars, "_compile", compile_late)
    texts: list[str] = []

    def ask(word: str) -> None:
        body = {"structured_outputs": {"choice": [word]}}
        client = tiny.openai(timeout=WAIT_S / 2)
        chunks = client.completions.create(model="sim", prompt="x", max_tokens=9, stream=True, extra_body=body)
        texts.append("".join(chunk.choices[0].text for chunk in chunks))

    waiting = threading.Thread(target=ask, args=("big",))
    waiting.start()
    try:
        assert begun.wait(WAIT_S)
        ask("small")
        assert texts == ["small"], "one with a grammar of its own has come and gone"
    finally:
        gate.set()
        waiting.join(WAIT_S)
    assert texts == ["small", "big"]


@pytest.mark.parametrize(
    "extra",
    [
        {"response_format": {"type": "json_schema"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}},
        {"structured_outputs": {"regex": "("}},
        {"structured_outputs": {"regex": 5}},
        {"structured_outputs": {"regex": "a", "choice": ["b"]}},
        {"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}},
        {"structured_outputs": {"xml": "a"}},
        {"structured_outputs": {"guided_regex": "a"}},
    ],
)
def test_a_bad_constraint_is_refused(tiny: Live, extra: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError):
        tiny.openai().chat.completions.create(model="sim", messages=ASK, extra_body=extra)
