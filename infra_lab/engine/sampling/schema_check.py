"""Refuse the parts of JSON Schema that the grammar compiler would pass over in silence.

A schema that is half obeyed is worse than one that is refused: the caller relies on it. These are the keywords that
xgrammar 0.2 ignores, alone or beside others; each was found by generating from it and validating what came out.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from infra_lab.errors import InvalidRequestError

_IGNORED = frozenset(
    (
        "contains", "minContains", "maxContains", "not", "if", "then", "else", "oneOf", "dependencies",
        "dependentRequired", "dependentSchemas", "unevaluatedItems", "$dynamicRef", "$recursiveRef",
    )
)  # fmt: skip
_ANNOTATIONS = frozenset(
    (
        "$schema", "$id", "$anchor", "$comment", "$defs", "definitions", "title", "description", "default", "examples",
        "deprecated", "readOnly", "writeOnly",
    )
)  # fmt: skip
_WHOLE = ("$ref", "allOf", "anyOf", "enum", "const")
"""Where one of these stands, the compiler looks at nothing else."""
_OF_A_TYPE = {
    "minimum": ("number", "integer"), "maximum": ("number", "integer"),
    "exclusiveMinimum": ("number", "integer"), "exclusiveMaximum": ("number", "integer"),
    "multipleOf": ("integer",),
    "minLength": ("string",), "maxLength": ("string",), "pattern": ("string",),
}  # fmt: skip
_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,), "array": (list,), "string": (str,), "integer": (int,), "number": (int, float),
    "boolean": (bool,), "null": (type(None),),
}  # fmt: skip


def check_json_schema(source: str) -> None:
    """Raise InvalidRequestError if `source` is no JSON schema, or asks for what would not be enforced, saying where."""
    try:
        schema = json.loads(source)
    except ValueError as error:
        raise InvalidRequestError(f"the JSON schema is not JSON: {error}") from None
    if not isinstance(schema, dict | bool):
        raise InvalidRequestError(f"the JSON schema is {source[:80]!r}; expected an object, or true")
    for path, part in _parts(schema, "#"):
        problem = _problem(part)
        if problem:
            raise InvalidRequestError(f"the JSON schema asks at {path} for what cannot be enforced: {problem}")


def _parts(schema: Any, path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every schema within a schema. Names of properties, and values of enums, are none."""
    if not isinstance(schema, dict):
        return
    yield path, schema
    for name in ("items", "additionalProperties", "unevaluatedProperties"):
        yield from _parts(schema.get(name), f"{path}/{name}")
    if isinstance(schema.get("propertyNames"), dict):  # a name is a string, said or not
        yield from _parts({"type": "string", **schema["propertyNames"]}, f"{path}/propertyNames")
    for name in ("properties", "patternProperties", "$defs", "definitions"):
        members = schema.get(name)
        for key, part in members.items() if isinstance(members, dict) else ():
            yield from _parts(part, f"{path}/{name}/{key}")
    for name in ("prefixItems", "anyOf", "allOf"):
        members = schema.get(name)
        for index, part in enumerate(members if isinstance(members, list) else ()):
            yield from _parts(part, f"{path}/{name}/{index}")


def _problem(schema: Mapping[str, Any]) -> str | None:
    ignored = sorted(_IGNORED.intersection(schema)) + ["uniqueItems"] * bool(schema.get("uniqueItems"))
    if ignored:
        hint = "; write anyOf if several may match" if ignored[0] == "oneOf" else ""
        return f"{ignored[0]} is not supported{hint}"
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference != "#" and not reference.startswith("#/"):
        return f"$ref {reference!r} leads out of the schema; it must start with '#/'"
    if len(schema.get("allOf", ())) > 1:
        return "allOf of several schemas; merge them into one"
    for keyword in _WHOLE:
        if keyword in schema:
            return _problem_beside(keyword, schema)
    return _problem_of_object(schema) or _problem_of_value(schema)


def _problem_of_object(schema: Mapping[str, Any]) -> str | None:
    declared, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    for name in schema.get("required", ()):
        if name not in declared:
            return f"{name!r} is required, and properties does not describe it"
    if len(patterns) + bool(declared) + ("propertyNames" in schema) > 1:
        return "one name may fall under several of properties, patternProperties and propertyNames; use one of them"
    has_free_names = patterns or "propertyNames" in schema or schema.get("additionalProperties", not declared)
    if has_free_names and schema.get("minProperties", 0) > 1:
        return "minProperties of names that are not declared; the same name could come twice"
    return None


def _problem_of_value(schema: Mapping[str, Any]) -> str | None:
    if "pattern" in schema and ("minLength" in schema or "maxLength" in schema):
        return "a pattern and a length; put the length into the pattern"
    types = _types(schema)
    for keyword, owners in _OF_A_TYPE.items():
        if keyword in schema and not types.intersection(owners):
            return f'{keyword} without "type": "{owners[0]}"'
    return None


def _problem_beside(keyword: str, schema: Mapping[str, Any]) -> str | None:
    """What stands beside a keyword that hides it, apart from a type that an enum's values have anyway."""
    hidden = set(schema) - _ANNOTATIONS - {keyword}
    if keyword in ("enum", "const") and "type" in hidden:
        values = schema["enum"] if keyword == "enum" else [schema["const"]]
        strays = [value for value in values if not any(_has_type(value, name) for name in _types(schema))]
        if strays:
            return f"{keyword} holds {strays[0]!r}, which is not of type {schema['type']!r}"
        hidden.discard("type")
    return f"{sorted(hidden)[0]} beside {keyword}; put all into one of the two" if hidden else None


def _types(schema: Mapping[str, Any]) -> set[str]:
    types = schema.get("type", [])
    return set(types) if isinstance(types, list) else {types}


def _has_type(value: object, name: str) -> bool:
    return isinstance(value, _TYPES.get(name, ())) and (isinstance(value, bool) <= (name == "boolean"))
