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
MUTANTS = [
    pytest.param(path, mutant, id=f"{path.stem}: {mutant.name}")
    for path in SOLUTIONS
    for mutant in read_mutants(path.with_suffix(".mutants.toml"))
]


def run(notebook: Notebook, solution: Path) -> tuple[GradeRow, list[dict[str, object]]]:
    """Grade a notebook as the exercise of that solution; return its row and the records of its checks."""
    pristine = read_notebook(solution.parents[1] / "exercises" / solution.name)
    assembled = assemble(notebook, pristine)
    outcome = run_notebook(
        assembled.notebook, {}, labs=LABS, cell_timeout_s=120, total_timeout_s=400, memory_bytes=6 << 30,
        max_output_bytes=5_000_000, threads=1, stop=Event(),
    )  # fmt: skip
    row = score("", solution.name, "", assembled, outcome)
    return row, [record for cell in outcome.cells for record in cell.grades]


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


@pytest.mark.parametrize(("solution", "mutant"), MUTANTS)
def test_each_mutant_loses_what_it_should(solution: Path, mutant: Mutant) -> None:
    row, _ = run(apply_mutant(read_notebook(solution), mutant), solution)
    expected = {name: points - mutant.loses.get(name, 0.0) for name, points in full_marks(solution).items()}
    assert row.scores == pytest.approx(expected)


@pytest.mark.parametrize("lesson", [path for _, path in written_lessons(LABS)], ids=lambda path: path.stem)
def test_each_lesson_keeps_the_contract(lesson: Path) -> None:
    assert [str(problem) for problem in check_lesson(lesson)] == []
