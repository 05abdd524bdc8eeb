"""Data files are found in a clone and in a wheel, and nothing here hides a library of the same name."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from infra_lab.data import data_path
from infra_lab.errors import ModelNotFoundError

ROOT = Path(__file__).resolve().parent.parent


def test_in_a_clone() -> None:
    assert data_path("tiny/config.json") == ROOT / "datasets" / "tiny" / "config.json"
    with pytest.raises(ModelNotFoundError, match="no data file 'nothing'"):
        data_path("nothing")


def test_in_a_wheel(tmp_path: Path) -> None:
    """Builds the wheel from a copy of the tree, unpacks it, and generates with it from elsewhere."""
    tree = tmp_path / "tree"
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("infra_lab", "kernels", "datasets"):
        shutil.copytree(ROOT / name, tree / name, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree / name)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        tmp_path,
        tree,
    ]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    tops = {path.name for path in site.iterdir() if not path.name.endswith(".dist-info")}
    assert tops == {"infra_lab", "kernels"}, "no top-level `datasets`"
    code = (
        "import infra_lab.data; from infra_lab import LLM, SamplingParams\n"
        "assert '_datasets' in str(infra_lab.data.data_path('tiny'))\n"
        "print(LLM('tiny').generate('def', SamplingParams(max_tokens=2))[0].finish_reason)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(site), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() in ("length", "stop"), done.stderr


def test_every_package_is_listed_for_the_wheel() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for top in ("infra_lab", "kernels")
        for path in (ROOT / top).rglob("__init__.py")
    }
    assert set(listed) - {"infra_lab._datasets"} == found


def test_transformers_imports_with_our_kernels_folder_in_sight() -> None:
    """transformers probes for a hub client called `kernels`; ours must not confuse it."""
    code = "import transformers, kernels; transformers.AutoModelForCausalLM; print(kernels.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert str(ROOT) in done.stdout
    assert not (ROOT / "datasets" / "__init__.py").exists()
