"""Reading and writing notebook files, and what the course notes in their cells.

A cell of an exercise says what it is in its metadata:

    {"infra_lab": {"role": "answer", "exercise": "allocator", "hints": ["...", "..."], "reveal_after": 3}}
    {"infra_lab": {"role": "check", "exercise": "allocator", "points": 3}}
    {"infra_lab": {"role": "setup"}}   {"infra_lab": {"role": "hint"}}
"""

import json
import os
import re
from pathlib import Path
from typing import Any, TypeAlias

from infra_lab.errors import ConfigError

Notebook: TypeAlias = dict[str, Any]
"""An nbformat 4 notebook; nbformat's own node type is a dict."""
Cell: TypeAlias = dict[str, Any]
ROLES = ("setup", "answer", "check", "hint")
MAX_NOTEBOOK_BYTES = 32 << 20
_CELL_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")


def read_notebook(path: Path) -> Notebook:
    """Read a notebook as version 4.5; halves of characters, which no file can hold, become question marks.

    Raises ConfigError for a file that is missing, empty, larger than MAX_NOTEBOOK_BYTES, or not a notebook.
    """
    import nbformat

    if path.is_dir():
        raise ConfigError(f"there is no notebook (*.ipynb) in {path}")
    try:
        if (size := path.stat().st_size) > MAX_NOTEBOOK_BYTES:
            raise ConfigError(
                f"{path} has {size / 2**20:,.0f} MiB; expected under {MAX_NOTEBOOK_BYTES >> 20}: clear its outputs and save it"
            )
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"there is no notebook {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    if not text.strip():
        raise ConfigError(f"{path} is empty; expected a notebook")
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not JSON ({error}); expected a notebook") from None
    if not isinstance(raw, dict) or raw.get("nbformat") != 4 or not isinstance(raw.get("cells"), list):
        raise ConfigError(f"{path} is not a notebook of format 4: it has no list of cells")
    try:
        _name_cells(raw["cells"])
        raw["nbformat_minor"] = 5
        whole = json.dumps(raw, ensure_ascii=False).encode("utf-8", "replace").decode()
        notebook: Notebook = nbformat.reads(whole, as_version=4)
        nbformat.validate(notebook)
    except Exception as error:  # noqa: BLE001 - nbformat's many ways to say that a notebook is malformed
        raise ConfigError(f"{path} is not a valid notebook: {str(error).splitlines()[0]}") from None
    return notebook


def _name_cells(cells: list[Cell]) -> None:
    """Give cells whose id is missing, malformed (some editors write others) or taken one that tells their position only."""
    seen: set[str] = set()
    for index, cell in enumerate(cells):
        name = cell.get("id")
        if not isinstance(name, str) or not _CELL_ID.fullmatch(name) or name in seen:
            cell["id"] = name = f"cell-{index}"
        seen.add(name)


def notebook_text(notebook: Notebook) -> str:
    """Serialise a notebook the same way every time, ending in a newline."""
    import nbformat

    return str(nbformat.writes(nbformat.from_dict(notebook), version=4)).rstrip("\n") + "\n"


def write_text(path: Path, text: str) -> None:
    """Write a file as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def course_metadata(thing: Notebook | Cell) -> dict[str, Any]:
    """Return what the course noted in a notebook or a cell; empty if nothing, or if it is damaged."""
    metadata = thing.get("metadata")
    noted = metadata.get("infra_lab") if isinstance(metadata, dict) else None
    return noted if isinstance(noted, dict) else {}


def role(cell: Cell) -> str:
    """Return a cell's role, "" for none."""
    return str(course_metadata(cell).get("role", ""))


def exercise_name(cell: Cell) -> str:
    """Return the exercise that a cell belongs to, "" for none."""
    return str(course_metadata(cell).get("exercise", ""))


def tags(cell: Cell) -> list[str]:
    """Return a cell's tags."""
    found = cell.get("metadata", {}).get("tags", [])
    return [str(tag) for tag in found] if isinstance(found, list) else []


def code_cells(notebook: Notebook) -> list[Cell]:
    """List the code cells."""
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
