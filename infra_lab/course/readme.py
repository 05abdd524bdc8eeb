"""`labs/README.md`, written from the catalog: the table of contents."""

from pathlib import Path

from infra_lab.course.catalog import is_written
from infra_lab.course.folders import labs_path
from infra_lab.course.notebooks import write_text
from infra_lab.course.toc import CHAPTERS, SECTIONS, Section

_HEAD = """\
# The lessons

Each lesson is a notebook that opens the real engine and turns its knobs, with an exercise that is graded. `make lab` starts
JupyterLab here. Begin with [00_start_here.ipynb](00_start_here.ipynb). "CPU" lessons need nothing but this machine; where a
GPU adds more, its measurements are included.
"""
_COLUMNS = "| | lesson | after it you can | minutes | runs on |\n|---|---|---|---|---|\n"


def render_toc(labs: Path | None = None) -> str:
    """Return the table of contents as Markdown; sections that are not written yet say so."""
    root = labs or labs_path()
    parts = [_HEAD]
    for folder, (title, chinese) in CHAPTERS.items():
        rows = "".join(_row(entry, root) for entry in SECTIONS if entry.folder == folder)
        parts.append(f"## {title} · {chinese}\n\n{_COLUMNS}{rows}")
    return "\n".join(parts)


def _row(entry: Section, labs: Path) -> str:
    written = is_written(entry, labs)
    link = entry.path.removeprefix("labs/")
    title = f"[{entry.title}]({link})" if written else f"{entry.title} *(not written yet)*"
    return f"| {entry.number} | {title}<br>{entry.chinese} | {entry.outcome} | {entry.minutes} | {entry.tier} |\n"


def write_toc(labs: Path | None = None, *, check_only: bool = False) -> bool:
    """Write `README.md` into the labs folder; return whether it was, or with `check_only` would be, changed."""
    path = (labs or labs_path()) / "README.md"
    text = render_toc(path.parent)
    changed = not path.exists() or path.read_text(encoding="utf-8") != text
    if changed and not check_only:
        write_text(path, text)
    return changed
