"""What a rule is given, and what it answers."""

from pathlib import Path
from typing import NamedTuple

from infra_lab.course.notebooks import Cell, Notebook, tags
from infra_lab.course.toc import Section


class Lesson(NamedTuple):
    """A lesson's notebook and its place in the course."""

    path: Path
    section: Section
    notebook: Notebook
    labs: Path

    @property
    def cells(self) -> list[tuple[int, Cell]]:
        """The cells with their numbers, from 1."""
        return list(enumerate(self.notebook["cells"], 1))

    def tagged(self, tag: str) -> list[tuple[int, Cell]]:
        """The cells that carry a tag."""
        return [(number, cell) for number, cell in self.cells if tag in tags(cell)]

    @property
    def is_first(self) -> bool:
        """Whether this is `00_start_here`, which is excused from some parts."""
        return self.section.number == "0"


class Problem(NamedTuple):
    """One breach of the contract."""

    rule: str
    message: str
    cell: int | None = None
    """Its number, from 1; None for the whole notebook."""

    def __str__(self) -> str:
        place = f"cell {self.cell}: " if self.cell is not None else ""
        return f"{place}{self.message} [{self.rule}]"
