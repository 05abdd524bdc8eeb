"""Handing in notebooks, for tests of the grading."""

from collections.abc import Callable
from pathlib import Path

import nbformat

from infra_lab.course.catalog import LessonFiles
from infra_lab.course.grading import GradeRow, GradingLimits, grade
from tests.course.sample import answered

BLOCKS = "def num_blocks(n):\n    return -(-n // block_size)"
SLOTS = "def slots(t, n):\n    return [t[i // block_size] * block_size + i % block_size for i in range(n)]"
Change = Callable[[nbformat.NotebookNode], None]


def hand_in(
    files: LessonFiles, path: Path, *, blocks: str = BLOCKS, slots: str = SLOTS, change: Change | None = None
) -> Path:
    """Write a submission that answers the sample exercise; right, unless told otherwise."""
    notebook = answered(nbformat.read(files.exercise, as_version=4), blocks=blocks, slots=slots)
    if change is not None:
        change(notebook)
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
    return path


def grade_one(path: Path, labs: Path, *, memory_mib: int = 6144, cell_timeout_s: int = 30) -> GradeRow:
    rows = grade(path, labs=labs, limits=GradingLimits(cell_timeout_s, 240, memory_mib))
    assert len(rows) == 1
    return rows[0]


def by_id(notebook: nbformat.NotebookNode, cell_id: str) -> nbformat.NotebookNode:
    return next(cell for cell in notebook.cells if cell.id == cell_id)


def remove(notebook: nbformat.NotebookNode, *ids: str) -> None:
    notebook.cells = [cell for cell in notebook.cells if cell.id not in ids]
