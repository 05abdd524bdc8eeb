"""The notebook that is graded: the student's cells, with every check and setup cell as it was handed out.

pristine:   setup  answer A  check A  answer B  check B
submitted:  setup* answer A  cell     check B*  answer B          (* edited; check A deleted, check B moved up)
graded:     setup  answer A  check A  cell      answer B  check B
"""

import copy
import re
from typing import NamedTuple

from infra_lab.course.notebooks import Cell, Notebook, course_metadata, exercise_name, role, tags

_ONLY_HELP = re.compile(r"([ \t]*((hint|reveal)\([^()\n]*\)[ \t]*)?(#.*)?\n)+")
"""Lines that ask for a hint, comments and empty lines; no two ways to match one, or empty lines would take for ever."""
_FRESH_CHECK = "from infra_lab.course import check  # whatever that name means by now\n"


class CheckCell(NamedTuple):
    """A check whose output counts."""

    cell_id: str
    exercise: str
    points: float


class Assembled(NamedTuple):
    """What is run, and what of it counts."""

    notebook: Notebook
    checks: tuple[CheckCell, ...]
    restored: tuple[str, ...]
    """Names of the cells that were missing or stood before their answer."""


def check_cells(pristine: Notebook) -> tuple[CheckCell, ...]:
    """List the checks of an exercise notebook, with their points."""
    return tuple(
        CheckCell(cell["id"], exercise_name(cell), float(course_metadata(cell).get("points", 0)))
        for cell in pristine["cells"]
        if role(cell) == "check"
    )


def assemble(submitted: Notebook, pristine: Notebook) -> Assembled:
    """Put the pristine checks and setup into a student's notebook; neither argument is changed."""
    cells: list[Cell] = copy.deepcopy(submitted["cells"])
    restored: list[str] = []
    setup_end = 0
    for original in pristine["cells"]:
        if not _is_ours(original):
            continue
        at = _find(cells, original)
        own = copy.deepcopy(original)
        if role(original) == "check":
            own["source"] = _FRESH_CHECK + own["source"]
            answered = _last_answer(cells, original, pristine)
            if at is None or answered > at:
                if at is not None:
                    del cells[at]
                    answered -= 1
                cells.insert(answered + 1 if answered >= 0 else len(cells), own)
                restored.append(f"check {exercise_name(original)}")
            else:
                cells[at] = own
        elif at is None:
            cells.insert(setup_end, own)
            setup_end += 1
            restored.append(f"setup {original['id']}")
        else:
            cells[at] = own
            setup_end = at + 1
    for cell in cells:
        _prepare(cell)
    notebook = {"nbformat": 4, "nbformat_minor": 5, "metadata": copy.deepcopy(pristine["metadata"]), "cells": cells}
    return Assembled(notebook, check_cells(pristine), tuple(restored))


def _is_ours(cell: Cell) -> bool:
    return role(cell) in ("check", "setup") or "parameters" in tags(cell)


def _find(cells: list[Cell], original: Cell) -> int | None:
    """Find where a pristine cell is in a student's notebook: by its id, its metadata, or the check it begins."""
    begins = re.compile(rf"check\(\s*[\"']{re.escape(exercise_name(original))}[\"']")
    is_check = role(original) == "check"
    ways = (
        lambda cell: cell["id"] == original["id"],
        lambda cell: is_check and role(cell) == "check" and exercise_name(cell) == exercise_name(original),
        lambda cell: is_check and cell["cell_type"] == "code" and begins.search(cell["source"]),
        lambda cell: not is_check and cell["source"].strip() == original["source"].strip(),
    )
    return next((at for way in ways for at, cell in enumerate(cells) if way(cell)), None)


def _last_answer(cells: list[Cell], check: Cell, pristine: Notebook) -> int:
    """Return where the last answer of a check's exercise stands, -1 if there is none."""
    name = exercise_name(check)
    ids = {cell["id"] for cell in pristine["cells"] if role(cell) == "answer" and exercise_name(cell) == name}
    return max(
        (
            at
            for at, cell in enumerate(cells)
            if cell["id"] in ids or (role(cell) == "answer" and exercise_name(cell) == name)
        ),
        default=-1,
    )


def _prepare(cell: Cell) -> None:
    """Clear what a run would leave, silence hints, and drop tags that would keep a cell from running.

    A cell that asks for a hint and does something else too is run: the rest may be part of an answer.
    """
    if cell["cell_type"] != "code":
        return
    cell["outputs"], cell["execution_count"] = [], None
    if cell["source"].strip() and _ONLY_HELP.fullmatch(cell["source"] + "\n"):
        cell["source"] = "# hints are not run in grading"
    cell["metadata"] = {"tags": [tag for tag in tags(cell) if tag == "parameters"]}
