"""The lesson contract: what every lesson has, checked on the notebook as it is stored.

head.py      title, Chinese title, outcome, minutes, tier, prerequisites
parts.py     the ten parts, by the tags of the cells, in their order
outputs.py   it was run, it is light, and nothing live is stored in it
prose.py     no figure without a computation or a source
partners.py  claims of the ledger; exercise, solution and mutants
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from infra_lab.course.catalog import section_of
from infra_lab.course.contract.head import head_problems
from infra_lab.course.contract.lesson import Lesson, Problem
from infra_lab.course.contract.outputs import output_problems
from infra_lab.course.contract.partners import claim_problems, exercise_problems
from infra_lab.course.contract.parts import part_problems
from infra_lab.course.contract.prose import prose_problems
from infra_lab.course.notebooks import read_notebook
from infra_lab.errors import ConfigError

__all__ = ["RULES", "Lesson", "Problem", "check_lesson", "open_lesson"]

RULES: tuple[Callable[[Lesson], Iterator[Problem]], ...] = (
    head_problems,
    part_problems,
    output_problems,
    prose_problems,
    claim_problems,
    exercise_problems,
)


def open_lesson(path: Path) -> Lesson:
    """Read a lesson. Raises ConfigError for a file whose name is no section's, or that is not a notebook."""
    entry = section_of(path)
    if entry is None:
        raise ConfigError(
            f"{path.name} is no lesson of the course; the catalog (infra_lab/course/toc.py) has no such section"
        )
    labs = path.resolve().parents[1] if entry.folder else path.resolve().parent
    return Lesson(path, entry, read_notebook(path), labs)


def check_lesson(path: Path) -> list[Problem]:
    """Hold a lesson against the contract; return what it breaks, in the order of the rules."""
    lesson = open_lesson(path)
    return [problem for rule in RULES for problem in rule(lesson)]
