"""Where the lessons are, and where the learner's own files go."""

import os
import sys
from pathlib import Path

from infra_lab.errors import ConfigError

_CLONE = Path(__file__).resolve().parents[2] / "labs"
_FIRST_LESSON = "00_start_here.ipynb"


def labs_path() -> Path:
    """Return the folder of the lessons: $INFRA_LAB_LABS, a folder above the working directory, or this clone's `labs/`.

    Raises ConfigError if there is none.
    """
    if chosen := os.environ.get("INFRA_LAB_LABS"):
        path = Path(chosen).expanduser()
        if path.is_dir():
            return path.resolve()
        raise ConfigError(f"INFRA_LAB_LABS is {chosen}, which is not a folder; set it to the course's labs folder")
    here = Path.cwd()
    for place in (here, *here.parents):
        if (place / _FIRST_LESSON).is_file():
            return place
        if (place / "labs" / _FIRST_LESSON).is_file():
            return place / "labs"
    if _CLONE.is_dir():
        return _CLONE
    raise ConfigError(
        f"the lessons were not found from {here}; work inside a clone of the project, or set INFRA_LAB_LABS to its labs folder"
    )


def progress_path() -> Path:
    """Return the file of the learner's progress: $INFRA_LAB_PROGRESS, or one in the user's data folder."""
    if chosen := os.environ.get("INFRA_LAB_PROGRESS"):
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return base / "infra-lab" / "progress.json"
