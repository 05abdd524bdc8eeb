"""Exercises are written from their solutions: `infra-lab exercises build`.

`solutions/NAME.ipynb` is the source; `exercises/NAME.ipynb` beside it is written from it and never edited. The same
source gives the same bytes.
"""

import copy
from pathlib import Path
from typing import NamedTuple

from infra_lab.course.catalog import section_of
from infra_lab.course.delimiters import without_solution
from infra_lab.course.folders import labs_path
from infra_lab.course.notebooks import (
    ROLES,
    Cell,
    Notebook,
    course_metadata,
    exercise_name,
    notebook_text,
    read_notebook,
    role,
    write_text,
)
from infra_lab.errors import ConfigError


class Built(NamedTuple):
    """One exercise notebook."""

    path: Path
    changed: bool
    """Whether the file on disk was, or would be, changed."""


def build_exercises(path: Path | None = None, *, check_only: bool = False) -> list[Built]:
    """Write the exercise of a solution notebook, or of every solution below a folder (the labs if not given).

    With `check_only` nothing is written. Raises ConfigError for a solution that cannot be built, naming the cell, and
    if there is no solution.
    """
    built = []
    for solution in find_solutions(path or labs_path()):
        target = exercise_path(solution)
        text = notebook_text(student_notebook(read_notebook(solution), solution))
        changed = not target.exists() or target.read_text(encoding="utf-8") != text
        if changed and not check_only:
            write_text(target, text)
        built.append(Built(target, changed))
    return built


def find_solutions(path: Path) -> list[Path]:
    """List the solution notebooks at or below a path. Raises ConfigError if there is none."""
    if path.is_file():
        if path.parent.name != "solutions":
            raise ConfigError(f"{path} is not in a folder named solutions; give the solution notebook, or a folder")
        return [path]
    found = sorted(p for p in path.rglob("solutions/*.ipynb") if ".ipynb_checkpoints" not in p.parts)
    if not found:
        raise ConfigError(f"there is no solutions/*.ipynb below {path}; give a solution notebook or the labs folder")
    return found


def exercise_path(solution: Path) -> Path:
    """Return where the exercise of a solution goes: the sibling folder `exercises`."""
    return solution.parent.parent / "exercises" / solution.name


def student_notebook(solution: Notebook, path: Path) -> Notebook:
    """Make the exercise: solutions replaced by a stub, outputs and counts cleared, roles kept.

    Raises ConfigError, naming the cell, for a delimiter that is unbalanced or outside an answer cell, an answer without
    a solution, an unknown role, or an exercise whose answer or check is missing.
    """
    notebook: Notebook = copy.deepcopy(solution)
    for number, cell in enumerate(notebook["cells"], 1):
        where = f"{path.name}, cell {number} ({cell['id']})"
        source, count = without_solution(cell["source"], where)
        _refuse_wrong_role(cell, count, where)
        cell["source"] = source
        cell["metadata"] = {key: cell["metadata"][key] for key in ("infra_lab", "tags") if key in cell["metadata"]}
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
    _refuse_missing_partners(notebook, path)
    notebook["metadata"] = {
        "infra_lab": {**course_metadata(solution), "kind": "exercise", "section": _section_number(solution, path)},
        "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


def _section_number(solution: Notebook, path: Path) -> str:
    noted = course_metadata(solution).get("section")
    by_name = section_of(path)
    if noted is None and by_name is None:
        raise ConfigError(
            f'{path.name} says no section: note {{"infra_lab": {{"section": "4.2"}}}} in the notebook\'s metadata'
        )
    return str(noted) if noted is not None or by_name is None else by_name.number


def _refuse_wrong_role(cell: Cell, num_solutions: int, where: str) -> None:
    what = role(cell)
    if what and what not in ROLES:
        raise ConfigError(f"{where}: unknown role {what!r}; the roles are {', '.join(ROLES)}")
    if num_solutions and what != "answer":
        raise ConfigError(
            f'{where}: a solution in a cell that is no answer; give it the role "answer" and its exercise'
        )
    if what == "answer" and not num_solutions:
        raise ConfigError(
            f"{where}: an answer without BEGIN SOLUTION and END SOLUTION; the exercise would give it away"
        )
    if what in ("answer", "check") and not exercise_name(cell):
        raise ConfigError(f'{where}: role {what!r} without "exercise"; name the exercise it belongs to')


def _refuse_missing_partners(notebook: Notebook, path: Path) -> None:
    names = {kind: [exercise_name(c) for c in notebook["cells"] if role(c) == kind] for kind in ("answer", "check")}
    for name in names["answer"]:
        if name not in names["check"]:
            raise ConfigError(f"{path.name}: exercise {name!r} has an answer and no check cell")
    for name in names["check"]:
        if name not in names["answer"]:
            raise ConfigError(f"{path.name}: exercise {name!r} has a check and no answer cell")
        if names["check"].count(name) > 1:
            raise ConfigError(f"{path.name}: exercise {name!r} has two check cells; keep one, with all its parts")
    if not names["check"]:
        raise ConfigError(
            f'{path.name} has no check cell; note {{"infra_lab": {{"role": "check", ...}}}} in its metadata'
        )
