"""What a lesson must agree with: the claims ledger, its exercise, solution and mutants."""

import re
from collections.abc import Iterator

from infra_lab.course.catalog import lesson_files
from infra_lab.course.contract.lesson import Lesson, Problem
from infra_lab.course.exercises import build_exercises
from infra_lab.course.ledger import claims_of
from infra_lab.course.mutants import apply_mutant, read_mutants
from infra_lab.course.notebooks import code_cells, exercise_name, read_notebook, role
from infra_lab.errors import ConfigError


def claim_problems(lesson: Lesson) -> Iterator[Problem]:
    """Require a `claim("ID", ...)` for every claim of the section."""
    code = "\n".join(cell["source"] for cell in code_cells(lesson.notebook))
    for row in claims_of(lesson.section):
        if not re.search(rf"\bclaim\(\s*[\"']{re.escape(row.id)}[\"']", code):
            yield Problem("claims", f'no cell settles claim("{row.id}"): {row.claim}')


def exercise_problems(lesson: Lesson) -> Iterator[Problem]:
    """Require solution, exercise and mutants; an exercise as its solution makes it; a mutant for every check."""
    files = lesson_files(lesson.section, lesson.labs)
    missing = [path for path in (files.solution, files.exercise, files.mutants) if not path.exists()]
    for path in missing:
        yield Problem("exercise-files", f"there is no {path.relative_to(lesson.labs)}")
    if missing:
        return
    try:
        if build_exercises(files.solution, check_only=True)[0].changed:
            yield Problem(
                "exercise-current", "the exercise is not what its solution makes; run `infra-lab exercises build`"
            )
        solution = read_notebook(files.solution)
        mutants = read_mutants(files.mutants)
        for mutant in mutants:
            apply_mutant(solution, mutant)
    except ConfigError as error:
        yield Problem("exercise-sound", str(error))
        return
    caught = {mutant.exercise for mutant in mutants}
    for name in (exercise_name(cell) for cell in solution["cells"] if role(cell) == "check"):
        if name not in caught:
            yield Problem("mutants", f"no mutant tries the check of {name!r}; add one to {files.mutants.name}")
