"""Where the data files are: chip tables, prompts, the bundled model, recorded measurements."""

from pathlib import Path

from infra_lab.errors import ModelNotFoundError


def data_path(name: str) -> Path:
    """Return the path of a file or folder in `datasets/`, in a clone and in an installed wheel alike.

    Raises ModelNotFoundError if there is no such file, naming the folder that was searched.
    """
    # In a clone and in a wheel, `datasets` lies beside the package: setuptools installs it as a plain folder of data.
    root = Path(__file__).resolve().parent.parent / "datasets"
    path = root / name
    if not path.exists():
        raise ModelNotFoundError(f"no data file {name!r} in {root}; reinstall infra-lab, or check the spelling")
    return path
