"""Structured output: OpenAI's `response_format`, vLLM's `structured_outputs` and forced tool calls, as grammars."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from infra_lab.grammar import Grammar
from infra_lab.server.api_error import invalid


def grammar_of(
    response_format: Mapping[str, Any] | None,
    structured_outputs: Mapping[str, Any] | None,
    guided: Mapping[str, Any],
) -> Grammar | None:
    """Return what the output must look like; None: anything. Raises ApiError for a format that is not known.

    guided: the members of structured_outputs under their older names, such as guided_json.
    """
    by_format = _of_response_format(response_format or {"type": "text"})
    members = [(f"structured_outputs.{kind}", kind, value) for kind, value in (structured_outputs or {}).items()]
    members += [(name, name.removeprefix("guided_"), value) for name, value in guided.items()]
    given = [member for member in members if member[2] is not None]
    if not given:
        return by_format
    if len(given) > 1 or by_format is not None:
        names = ["response_format"] * (by_format is not None) + [name for name, _, _ in given]
        raise invalid(f"{', '.join(names)}: give one constraint, not several", _field(given[0][0]))
    return _of_structured_outputs(*given[0])


def grammar_of_call(tools: Sequence[dict[str, Any]], name: str | None) -> Grammar:
    """Return the grammar of a call to one of the tools (to the one with this name). Raises ApiError if there is none."""
    functions = [tool["function"] for tool in tools if name in (None, tool["function"]["name"])]
    if not functions:
        raise invalid(f"tool_choice names {name!r}, which is not among the tools", "tool_choice")
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": function["name"]},
                "arguments": {"type": "object", **(function.get("parameters") or {})},
            },
            "required": ["name", "arguments"],
        }
        for function in functions
    ]
    return Grammar.json_schema(calls[0] if len(calls) == 1 else {"anyOf": calls})


def _of_response_format(response_format: Mapping[str, Any]) -> Grammar | None:
    kind = response_format.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return Grammar.json_object()
    if kind == "json_schema":
        wrapper = response_format.get("json_schema")
        schema = wrapper.get("schema") if isinstance(wrapper, dict) else None
        if not isinstance(schema, dict):
            raise invalid('response_format needs {"json_schema": {"name": ..., "schema": {...}}}', "response_format")
        return Grammar.json_schema(schema)
    raise invalid(
        f"response_format has the type {kind!r}; this server knows text, json_object and json_schema", "response_format"
    )


def _of_structured_outputs(name: str, kind: str, value: Any) -> Grammar | None:
    if kind == "json" and isinstance(value, dict | str):
        return Grammar.json_schema(value)
    if kind == "json_object" and isinstance(value, bool):
        return Grammar.json_object() if value else None
    if kind == "regex" and isinstance(value, str):
        return Grammar.regex(value)
    if kind == "grammar" and isinstance(value, str):
        return Grammar.ebnf(value)
    if kind == "choice" and isinstance(value, list) and value and all(isinstance(one, str) and one for one in value):
        return Grammar.ebnf("root ::= " + " | ".join(_ebnf_string(one) for one in value))
    raise invalid(
        f"{name} is not known, or its value is of the wrong type; expected json (a schema), json_object (true), regex, "
        "grammar (texts) or choice (a list of texts)",
        _field(name),
    )


def _field(name: str) -> str:
    return name.partition(".")[0]


def _ebnf_string(text: str) -> str:
    """A quoted string; JSON's escapes are also EBNF's."""
    return json.dumps(text, ensure_ascii=False)
