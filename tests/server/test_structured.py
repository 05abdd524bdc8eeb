"""`response_format` and `structured_outputs`: what comes out parses."""

import json
import re
from typing import Any

import openai
import pytest

from tests.server.live import Live

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
    "extra",
    [
        {"response_format": {"type": "json_schema"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}},
        {"structured_outputs": {"regex": "("}},
        {"structured_outputs": {"regex": 5}},
        {"structured_outputs": {"regex": "a", "choice": ["b"]}},
        {"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}},
        {"structured_outputs": {"xml": "a"}},
    ],
)
def test_a_bad_constraint_is_refused(tiny: Live, extra: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError):
        tiny.openai().chat.completions.create(model="sim", messages=ASK, extra_body=extra)
