"""What a worker writes down, one JSON line a cell, and what the supervisor reads even if the worker was killed."""

import json
from pathlib import Path
from typing import Any, NamedTuple


class CellRun(NamedTuple):
    """What one cell did."""

    cell_id: str
    number: int
    """Its place in the notebook that was run, from 1."""
    seconds: float
    grades: list[dict[str, Any]]
    """Every grade record that came out of it, whoever wrote it."""
    error: str
    timed_out: bool
    flooded: bool
    dead: str
    """Why no cell ran after this one; empty if the kernel lived."""


def read_transcript(path: Path) -> list[CellRun]:
    """Read the cells that were finished; a last line that was cut short is left out."""
    if not path.exists():
        return []
    runs = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            runs.append(CellRun(**json.loads(line)))
        except (ValueError, TypeError):
            break
    return runs
