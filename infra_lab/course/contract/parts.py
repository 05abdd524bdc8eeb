"""The parts of a lesson, known by the tags of its cells."""

import re
from collections.abc import Iterator
from itertools import pairwise

from infra_lab.course.contract.lesson import Lesson, Problem
from infra_lab.course.notebooks import tags

PARTS = (
    "setup", "problem", "predict", "mechanism", "panel", "invariants", "break-it", "claims", "gpu", "exercise", "summary",
)  # fmt: skip
"""In the order in which each must first appear."""
NOT_IN_FIRST = frozenset({"break-it", "claims", "gpu"})


def part_problems(lesson: Lesson) -> Iterator[Problem]:
    """Require each part, in order, and in some of them the call that makes it what it is."""
    parts = [part for part in PARTS if not (lesson.is_first and part in NOT_IN_FIRST)]
    first: dict[str, int] = {}
    for number, cell in lesson.cells:
        for tag in tags(cell):
            first.setdefault(tag, number)
    for part in parts:
        if part not in first:
            yield Problem("part-missing", f"no cell is tagged `{part}`; a lesson has {', '.join(parts)}")
    present = [part for part in PARTS if part in first]
    for before, after in pairwise(present):
        if first[after] < first[before]:
            yield Problem(
                "part-order", f"`{after}` begins before `{before}`; the order is {', '.join(parts)}", first[after]
            )
    own_number = re.escape(lesson.section.number)
    exercise = f"exercises/{lesson.section.slug}.ipynb"
    for part, pattern, message in (
        ("setup", rf"\blesson\(\s*[\"']{own_number}[\"']", f'must call lesson("{lesson.section.number}")'),
        ("predict", r"\bpredict\(", "must ask for a guess with predict(...)"),
        ("exercise", re.escape(exercise), f"must link to {exercise}"),
    ):
        cells = lesson.tagged(part)
        if cells and not any(re.search(pattern, cell["source"]) for _, cell in cells):
            yield Problem(f"{part}-call", f"the part `{part}` {message}", cells[0][0])
