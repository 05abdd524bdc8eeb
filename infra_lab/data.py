"""Where the data files are: chip tables, prompts, the bundled model, recorded measurements."""

from pathlib import Path

from infra_lab.errors import ModelNotFoundError

_PACKAGE = Path(__file__).resolve().parent
_PLACES = (_PACKAGE / "_datasets", _PACKAGE.parent / "datasets")
"""In an installed wheel, and in a clone. A wheel has no top-level `datasets`: that name belongs to a well-known library."""


def data_path(name: str) -> Path:
    """Return the path of a file or folder in `datasets/`, in a clone and in an installed wheel alike.

    Raises ModelNotFoundError if there is no such file, naming the folder that was searched.
    """
    root = next((place for place in _PLACES if place.is_dir()), _PLACES[-1])
    path = root / name
    if not path.exists():
        raise ModelNotFoundError(f"no data file {name!r} in {root}; reinstall infra-lab, or check the spelling")
    return path
