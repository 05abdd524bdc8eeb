"""What an output must look like: the specification only, which any process can hold; compiling it is the engine's part."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from infra_lab.errors import InvalidRequestError


@dataclass(frozen=True, slots=True)
class Grammar:
    """The language that the whole output is a word of. Make one with the class methods below.

    >>> SamplingParams(grammar=Grammar.json_schema({"type": "array", "items": {"type": "integer"}}))
    >>> SamplingParams(grammar=Grammar.regex(r"[0-9]{4}-[0-9]{2}-[0-9]{2}"))

    Whether the source is valid shows when the request is added.
    """

    kind: Literal["json_schema", "regex", "ebnf"]
    source: str

    @classmethod
    def json_object(cls) -> Self:
        """Any JSON object (the OpenAI API's `{"type": "json_object"}`)."""
        return cls("json_schema", '{"type": "object"}')

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | str) -> Self:
        """JSON that a schema accepts, with the properties in the schema's order and no others than it names.

        Raises InvalidRequestError for a schema that JSON cannot hold.
        """
        if isinstance(schema, str):
            return cls("json_schema", schema)
        try:
            return cls("json_schema", json.dumps(schema))
        except (TypeError, ValueError) as error:
            raise InvalidRequestError(f"the JSON schema is no JSON: {error}; give a dict of JSON values") from None

    @classmethod
    def regex(cls, pattern: str) -> Self:
        """Text that a regular expression matches from its first to its last character."""
        return cls("regex", pattern)

    @classmethod
    def ebnf(cls, rules: str) -> Self:
        """Text that a context-free grammar derives from its rule `root`, written as in llama.cpp (GBNF)."""
        return cls("ebnf", rules)
