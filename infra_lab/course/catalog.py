"""The course's table of contents as data: a section is a lesson."""

from dataclasses import dataclass
from pathlib import Path

from infra_lab.course.folders import labs_path
from infra_lab.course.toc import SECTIONS, Section
from infra_lab.errors import ConfigError


@dataclass(frozen=True, slots=True)
class LessonFiles:
    """Where the notebooks of one section lie, written or not."""

    lesson: Path
    exercise: Path
    solution: Path
    mutants: Path


def section(number: str) -> Section:
    """Return the section of that number, such as "4.2". Raises ConfigError for an unknown one, listing them all."""
    for entry in SECTIONS:
        if entry.number == number:
            return entry
    known = ", ".join(entry.number for entry in SECTIONS)
    raise ConfigError(f"there is no section {number!r} in the course; the sections are {known}")


def section_of(path: Path) -> Section | None:
    """Return the section whose lesson, exercise or solution has this file name, or None."""
    name = path.name.split(".")[0]
    return next((entry for entry in SECTIONS if entry.slug == name), None)


def lesson_files(entry: Section, labs: Path | None = None) -> LessonFiles:
    """Name the files of a section below the labs folder (found by `labs_path` if not given)."""
    folder = (labs or labs_path()) / entry.folder
    name = f"{entry.slug}.ipynb"
    solutions = folder / "solutions"
    return LessonFiles(
        folder / name, folder / "exercises" / name, solutions / name, solutions / f"{entry.slug}.mutants.toml"
    )


def is_written(entry: Section, labs: Path | None = None) -> bool:
    """Whether the section's lesson exists."""
    return lesson_files(entry, labs).lesson.exists()


def written_lessons(labs: Path | None = None) -> list[tuple[Section, Path]]:
    """List the sections that are written, in the course's order, with their notebooks."""
    root = labs or labs_path()
    return [(entry, lesson_files(entry, root).lesson) for entry in SECTIONS if is_written(entry, root)]
