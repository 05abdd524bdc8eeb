"""From the arguments of `gen` to `SamplingParams`."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from infra_lab.errors import InvalidRequestError
from infra_lab.grammar import Grammar
from infra_lab.sampling_params import SamplingParams

OPTIONS = frozenset(field.name for field in fields(SamplingParams)) - {"n"}
"""What may be set; several samples of one text are what `fork` is for."""


def sampling_params(
    options: Mapping[str, Any], *, regex: str | None = None, json_schema: Mapping[str, Any] | str | None = None
) -> SamplingParams:
    """Return the parameters of one generation.

    Raises InvalidRequestError for an option that does not exist, a value outside its range, or more than one grammar.
    """
    unknown = sorted(options.keys() - OPTIONS)
    if unknown:
        hint = "; use fork for several samples" if "n" in unknown else ""
        raise InvalidRequestError(f"gen has no option {', '.join(unknown)}{hint}; it has: {', '.join(sorted(OPTIONS))}")
    grammars = [
        *([] if regex is None else [Grammar.regex(regex)]),
        *([] if json_schema is None else [Grammar.json_schema(json_schema)]),
        *([] if options.get("grammar") is None else [options["grammar"]]),
    ]
    if len(grammars) > 1:
        raise InvalidRequestError(f"gen has {len(grammars)} grammars; give one of regex, json_schema and grammar")
    return SamplingParams(**{**options, "grammar": grammars[0] if grammars else None})
