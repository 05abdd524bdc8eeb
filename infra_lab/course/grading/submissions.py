"""Which notebooks are handed in, whose they are, and which exercise each one answers."""

import re
from pathlib import Path
from typing import NamedTuple

from infra_lab.course.catalog import lesson_files
from infra_lab.course.notebooks import Notebook, course_metadata
from infra_lab.course.toc import SECTIONS, Section
from infra_lab.errors import ConfigError

_COPY_SUFFIX = re.compile(r"(\s*\(\d+\)|[ _-]?copy\d*)+$", re.IGNORECASE)
"""What browsers and JupyterLab add to a second copy: `name (1)`, `name-Copy1`."""
_LEFT_OUT = {".ipynb_checkpoints", "__MACOSX"}


class Submission(NamedTuple):
    """One file that was handed in."""

    path: Path
    student: str


class NamedSection(NamedTuple):
    """What a file name says."""

    section: Section
    prefix: str
    """What stands before the lesson's name: in `alice_4_2_kv_cache.ipynb` it is alice."""


def find_submissions(path: Path) -> list[Submission]:
    """List the notebooks at or below a path: `alice/NAME.ipynb`, `alice_NAME.ipynb` or one file.

    A student's folder without a notebook is listed itself, so that nobody is passed over in silence. Raises ConfigError
    if there is no notebook at all.
    """
    if path.is_file():
        return [Submission(path, _student(path, path.parent))]
    if not path.is_dir():
        raise ConfigError(f"there is no {path}; expected a notebook, or a folder of notebooks")
    found = sorted(p for p in path.rglob("*.ipynb") if p.is_file() and not _LEFT_OUT & set(p.parts))
    if not found:
        raise ConfigError(f"there is no notebook (*.ipynb) below {path}")
    with_notebook = {p.relative_to(path).parts[0] for p in found}
    others = [p for p in path.iterdir() if p.is_dir() and p.name not in with_notebook | _LEFT_OUT]
    found += [p for p in others if not p.name.startswith(".")]
    return [Submission(p, p.name if p in others else _student(p, path)) for p in sorted(found)]


def _student(path: Path, root: Path) -> str:
    folders = path.relative_to(root).parts[:-1]
    named = section_named(path)
    return folders[0] if folders else named.prefix if named is not None and named.prefix else path.stem


def section_named(path: Path) -> NamedSection | None:
    """Return the section whose notebook this file name ends with, or None."""
    stem = _COPY_SUFFIX.sub("", path.stem)
    for entry in SECTIONS:
        if stem == entry.slug or stem.endswith((f"_{entry.slug}", f"-{entry.slug}", f" {entry.slug}")):
            return NamedSection(entry, stem[: -len(entry.slug)].rstrip("_- "))
    return None


def section_answered(path: Path, notebook: Notebook | None, labs: Path) -> Section:
    """Return the section of a submission: by the notebook's metadata, else by its file name.

    Raises ConfigError if neither names a section whose exercise exists.
    """
    number = course_metadata(notebook).get("section") if notebook is not None else None
    by_metadata = next((entry for entry in SECTIONS if entry.number == number), None)
    by_name = section_named(path)
    entry = by_metadata or (by_name.section if by_name is not None else None)
    if entry is None:
        raise ConfigError(f"{path.name} says no section in its metadata, and its name is not one of an exercise")
    if not lesson_files(entry, labs).exercise.exists():
        raise ConfigError(f"section {entry.number} has no exercise in {labs}")
    return entry
