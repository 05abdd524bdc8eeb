"""The course's own exercises: full marks for each solution, none for the stub, and each mutant loses what it should."""

from pathlib import Path
from threading import Event

import nbformat
import pytest

from infra_lab.course.catalog import lesson_files, section_of, written_lessons
from infra_lab.course.contract import check_lesson
from infra_lab.course.grading.assemble import assemble
from infra_lab.course.grading.score import GradeRow, score
from infra_lab.course.grading.supervise import run_notebook
from infra_lab.course.mutants import Mutant, apply_mutant, read_mutants
from infra_lab.course.notebooks import Notebook, read_notebook

LABS = Path(__file__).parents[2] / "labs"
SOLUTIONS = sorted(LABS.rglob("solutions/*.ipynb"))
TOGETHER = 8
"""Mutants that one kernel grades, one after the other: it takes longer to start than most checks do."""
MUTANTS = [
    pytest.param(path, mutants[start : start + TOGETHER], id=f"{path.stem} from {start + 1}")
    for path in SOLUTIONS
    for mutants in [read_mutants(path.with_suffix(".mutants.toml"))]
    for start in range(0, len(mutants), TOGETHER)
]

Graded = tuple[GradeRow, list[dict[str, object]]]
"""A row, and the records of its checks."""


def run(notebook: Notebook, solution: Path) -> Graded:
    """Grade a notebook as the exercise of that solution."""
    (graded,) = run_together([notebook], solution)
    return graded


def run_together(notebooks: list[Notebook], solution: Path) -> list[Graded]:
    """Grade notebooks one after the other in one kernel, the setup of each included."""
    pristine = read_notebook(solution.parents[1] / "exercises" / solution.name)
    parts = [assemble(notebook, pristine) for notebook in notebooks]
    cells = [
        {**cell, "id": f"{cell['id']}-{number}"} for number, part in enumerate(parts) for cell in part.notebook["cells"]
    ]
    outcome = run_notebook(
        {**parts[0].notebook, "cells": cells}, {}, labs=LABS, cell_timeout_s=120, total_timeout_s=500,
        memory_bytes=6 << 30, max_output_bytes=5_000_000, threads=1, stop=Event(),
    )  # fmt: skip
    graded = []
    for number, part in enumerate(parts):
        own = [
            cell._replace(cell_id=cell.cell_id.removesuffix(f"-{number}"))
            for cell in outcome.cells
            if cell.cell_id.endswith(f"-{number}")
        ]
        row = score("", solution.name, "", part, outcome._replace(cells=own))
        graded.append((row, [record for cell in own for record in cell.grades]))
    return graded


def full_marks(solution: Path) -> dict[str, float]:
    return {check.exercise: check.points for check in assemble(read_notebook(solution), read_notebook(solution)).checks}


def test_there_are_exercises_and_each_belongs_to_a_lesson() -> None:
    assert SOLUTIONS, f"no solutions below {LABS}: the tests of this file would prove nothing"
    written = {path for _, path in written_lessons(LABS)}
    for solution in SOLUTIONS:
        entry = section_of(solution)
        assert entry is not None, solution
        assert lesson_files(entry, LABS).lesson in written, f"{solution} is an exercise of no lesson"


@pytest.mark.parametrize("solution", SOLUTIONS, ids=lambda path: path.stem)
def test_the_solution_gets_full_marks_and_every_check_declares_its_parts(solution: Path) -> None:
    row, records = run(read_notebook(solution), solution)
    assert row.status == "ok", row.message
    assert row.scores == full_marks(solution)
    assert all(points > 0 for points in row.scores.values())
    for record in records:
        assert record["declared_parts"] == len(record["parts"]), f"check {record['exercise']!r}: wrong parts="


@pytest.mark.parametrize("solution", SOLUTIONS, ids=lambda path: path.stem)
def test_the_stub_gets_nothing(solution: Path) -> None:
    exercise = nbformat.from_dict(read_notebook(solution.parents[1] / "exercises" / solution.name))
    row, _ = run(exercise, solution)
    assert row.scores == dict.fromkeys(full_marks(solution), 0.0)


@pytest.mark.parametrize(("solution", "mutants"), MUTANTS)
def test_each_mutant_loses_what_it_should(solution: Path, mutants: list[Mutant]) -> None:
    graded = run_together([apply_mutant(read_notebook(solution), mutant) for mutant in mutants], solution)
    marks = full_marks(solution)
    found = {mutant.name: row.scores for mutant, (row, _) in zip(mutants, graded, strict=True)}
    for mutant in mutants:
        expected = {name: points - mutant.loses.get(name, 0.0) for name, points in marks.items()}
        assert found[mutant.name] == pytest.approx(expected), mutant.name


@pytest.mark.parametrize("lesson", [path for _, path in written_lessons(LABS)], ids=lambda path: path.stem)
def test_each_lesson_keeps_the_contract(lesson: Path) -> None:
    assert [str(problem) for problem in check_lesson(lesson)] == []
