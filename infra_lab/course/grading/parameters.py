"""Parameters of the graded notebooks: `--parameters num_blocks=8`."""

import ast
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from infra_lab.course.catalog import lesson_files
from infra_lab.course.grading.submissions import Submission, section_answered
from infra_lab.course.notebooks import read_notebook
from infra_lab.errors import ConfigError


def parse_parameters(given: Iterable[str]) -> dict[str, Any]:
    """Read `name=value`s; a value is a Python literal, or else text. Raises ConfigError for one without a name."""
    parameters = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise ConfigError(f"parameter {text!r}; expected name=value, such as num_blocks=8")
        try:
            parameters[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            parameters[name] = value
    return parameters


def refuse_unknown_parameters(parameters: dict[str, Any], submissions: Iterable[Submission], labs: Path) -> None:
    """Raise ConfigError for a parameter that one of the exercises does not have, naming those that it has."""
    if not parameters:
        return
    import papermill

    for exercise in sorted({path for one in submissions if (path := _exercise(one, labs)) is not None}):
        known = papermill.inspect_notebook(exercise)
        for name in parameters:
            if name not in known:
                has = ", ".join(known) or "none (no cell is tagged `parameters`)"
                raise ConfigError(f"{exercise.name} has no parameter {name!r}; it has {has}")


def _exercise(one: Submission, labs: Path) -> Path | None:
    try:
        notebook = read_notebook(one.path)
    except ConfigError:
        notebook = None
    try:
        return lesson_files(section_answered(one.path, notebook, labs), labs).exercise
    except ConfigError:
        return None
