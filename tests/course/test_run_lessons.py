"""Running lessons in place: what is stored, what is not, and a cell that raises."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from infra_lab.course import predict, session
from infra_lab.course.output import WIDGET_MIME
from infra_lab.course.run_lessons import find_lessons, run_lesson
from infra_lab.errors import ConfigError


def lesson_of(folder: Path, *sources: str) -> Path:
    path = folder / "labs" / "04_parallelism_and_memory" / "4_2_kv_cache.ipynb"
    path.parent.mkdir(parents=True)
    nbformat.write(new_notebook(cells=[new_code_cell(source) for source in sources]), path)
    return path


def test_what_is_stored_is_static_and_of_no_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_current", "4.2")
    predict("waste", "What share?").commit(40)
    path = lesson_of(
        tmp_path,
        'import os\nfrom infra_lab.course import lesson, predict\nlesson("4.2")',
        'guess = predict("waste", "What share?")\nguess',
        "print(os.path.basename(os.getcwd()), guess.value)",
        "import ipywidgets\nipywidgets.IntSlider()",
    )
    done = run_lesson(path)
    notebook = nbformat.read(path, as_version=4)
    assert done.num_bytes == path.stat().st_size
    assert [cell.execution_count for cell in notebook.cells] == [1, 2, 3, 4]
    assert "widgets" not in notebook.metadata
    assert notebook.metadata.language_info == {"name": "python"}
    assert all("execution" not in cell.metadata for cell in notebook.cells)
    assert set(notebook.cells[1].outputs[0].data) == {"text/plain"}
    assert notebook.cells[2].outputs[0].text == "04_parallelism_and_memory None\n", "its own folder; nobody's progress"
    assert WIDGET_MIME not in notebook.cells[3].outputs[0].data
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    before = path.read_bytes()
    run_lesson(path)
    assert path.read_bytes() == before, "running again changes nothing"


def test_nbval_compares_it_strictly(tmp_path: Path) -> None:
    path = lesson_of(
        tmp_path,
        "from infra_lab.course import check, claim, predict",
        'predict("waste", "What share?")',
        'claim("4.2-01", 1 < 2, because="1 < 2")',
        'with check("x", points=1) as c:\n    c.equal(1, 1, "one")',
    )
    run_lesson(path)
    command = [sys.executable, "-m", "pytest", "--nbval", "-q", "-p", "no:cacheprovider", str(path)]
    environment = {**os.environ, "INFRA_LAB_PROGRESS": str(tmp_path / "p.json")}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 0, done.stdout
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[2].outputs[0].data["application/vnd.infra-lab.claim+json"]["verdict"] = "wrong"
    nbformat.write(notebook, path)
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 1, "another verdict than the stored one is a failure"


def test_a_cell_that_raises_is_named_and_the_file_is_left(tmp_path: Path) -> None:
    path = lesson_of(tmp_path, "a = 1", "1 / 0", "b = 2")
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=r"4_2_kv_cache.ipynb, cell 2: ZeroDivisionError: division by zero"):
        run_lesson(path)
    assert path.read_bytes() == before


def test_a_cell_that_takes_too_long_is_named(tmp_path: Path) -> None:
    path = lesson_of(tmp_path, "import time", "time.sleep(100)")
    with pytest.raises(ConfigError, match=r"4_2_kv_cache.ipynb, cell 2: "):
        run_lesson(path, cell_timeout_s=2)


def test_lessons_come_in_the_courses_order_without_exercises(tmp_path: Path) -> None:
    names = ["labs/04_x/4_2_kv_cache.ipynb", "labs/00_start_here.ipynb", "labs/04_x/solutions/4_1_parallelism.ipynb"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    assert [path.name for path in find_lessons(tmp_path)] == ["00_start_here.ipynb", "4_2_kv_cache.ipynb"]
    with pytest.raises(ConfigError, match="no lesson of the course"):
        find_lessons(tmp_path / "labs" / "04_x" / "solutions" / "none")
