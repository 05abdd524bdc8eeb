"""The marks as a CSV file."""

import csv
import io
import os
from pathlib import Path

from infra_lab.course.grading.score import GradeRow
from infra_lab.course.notebooks import write_text
from infra_lab.errors import ConfigError

_BEFORE = ("student", "notebook", "section", "status", "earned", "points", "percent")
_AFTER = ("seconds", "message")


def refuse_unwritable(path: Path) -> None:
    """Raise ConfigError if the table could not be written: better before the grading than after it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"no folder {path.parent} can be made ({error.strerror}); choose another CSV file") from None
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise ConfigError(f"{path} is a folder, or lies in one that you cannot write in; choose another CSV file")


def write_csv(rows: list[GradeRow], path: Path) -> None:
    """Write one line a submission, and a column for each exercise of each section; the file appears as a whole."""
    exercises = list(dict.fromkeys((row.section, name) for row in rows for name in row.scores))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_BEFORE, *(f"{section} {name}" for section, name in exercises), *_AFTER])
    for row in rows:
        scores = [row.scores.get(name, "") if row.section == section else "" for section, name in exercises]
        first = (_safe(row.student), _safe(row.notebook), row.section, row.status, row.earned, row.points, row.percent)
        writer.writerow([*first, *scores, row.seconds, _safe(row.message)])
    write_text(path, text.getvalue())


def _safe(text: str) -> str:
    """Keep a spreadsheet from reading a student's text as a formula, and a row on one line."""
    line = " ".join(text.split())
    return f"'{line}" if line.startswith(("=", "+", "-", "@")) else line
