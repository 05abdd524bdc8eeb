"""Execute lesson notebooks in place, and store of them what a reader needs and a diff can bear."""

import os
import re
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from infra_lab.course.folders import labs_path
from infra_lab.course.notebooks import Notebook, code_cells, course_metadata, notebook_text, read_notebook, write_text
from infra_lab.course.output import WIDGET_MIME
from infra_lab.course.toc import SECTIONS
from infra_lab.errors import ConfigError

CELL_TIMEOUT_S = 300
_NO_LESSONS = {"exercises", "solutions", ".ipynb_checkpoints"}
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


class LessonRun(NamedTuple):
    """One lesson that ran through."""

    path: Path
    seconds: float
    num_bytes: int


def find_lessons(path: Path | None = None) -> list[Path]:
    """List the lessons at or below a path, in the course's order (all of the labs if no path is given).

    Raises ConfigError if there is none.
    """
    root = path or labs_path()
    if root.is_file():
        return [root]
    lessons = {p.name: p for p in root.rglob("*.ipynb") if not _NO_LESSONS & set(p.parts)}
    found = [lessons[name] for entry in SECTIONS if (name := f"{entry.slug}.ipynb") in lessons]
    if not found:
        raise ConfigError(f"there is no lesson of the course at or below {root}; give its notebook, or the labs folder")
    return found


def run_lesson(path: Path, *, cell_timeout_s: int = CELL_TIMEOUT_S) -> LessonRun:
    """Run a lesson from top to bottom in its own folder and replace the file by the result.

    Nobody's progress shows in it: predictions are as a newcomer sees them. Raises ConfigError if a cell raises or takes
    too long, naming the cell; the file is then left as it was.
    """
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    notebook = read_notebook(path)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="lesson-") as folder:
        client = NotebookClient(
            notebook, timeout=cell_timeout_s, kernel_name="python3", store_widget_state=False, record_timing=False,
            coalesce_streams=True, resources={"metadata": {"path": str(path.parent)}},
        )  # fmt: skip
        progress = {"INFRA_LAB_PROGRESS": str(Path(folder) / "progress.json")}
        try:
            client.execute(env={**os.environ, **progress})
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            last_line = _ANSI.sub("", str(error)).strip().splitlines()[-1]
            raise ConfigError(f"{path.name}, cell {_reached(notebook)}: {last_line}") from None
    tidy(notebook)
    text = notebook_text(notebook)
    write_text(path, text)
    return LessonRun(path, time.monotonic() - began, len(text.encode()))


def _reached(notebook: Notebook) -> int:
    """Number of the cell that was running: the last that has a count or an output."""
    started = [n for n, cell in enumerate(notebook["cells"], 1) if cell.get("execution_count") or cell.get("outputs")]
    failed = [n for n in started if any(o["output_type"] == "error" for o in notebook["cells"][n - 1]["outputs"])]
    return failed[0] if failed else started[-1] if started else 1


def tidy(notebook: Notebook) -> None:
    """Drop what only this run or this machine knows: widget state, widget views that have a picture beside them, timings."""
    for cell in code_cells(notebook):
        cell["metadata"].pop("execution", None)
        for output in cell["outputs"]:
            data: dict[str, Any] = output.get("data", {})
            if len(data) > 1:
                data.pop(WIDGET_MIME, None)
            if "metadata" in output:
                output["metadata"] = {}
    noted = course_metadata(notebook)
    notebook["metadata"] = {
        **({"infra_lab": noted} if noted else {}),
        "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
