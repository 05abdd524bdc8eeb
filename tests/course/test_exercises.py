"""Exercises from solutions: the same bytes every time, nothing given away, and mistakes named with their cell."""

import json
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest

from infra_lab.course.catalog import LessonFiles
from infra_lab.course.delimiters import without_delimiters, without_solution
from infra_lab.course.exercises import build_exercises, student_notebook
from infra_lab.course.notebooks import notebook_text, read_notebook, role
from infra_lab.errors import ConfigError
from tests.course.sample import cell, solution_notebook, write_sample_course

PATH = Path("solutions/4_2_kv_cache.ipynb")


def test_the_stub_stands_where_the_solution_stood() -> None:
    source = "def f():\n    a = 1\n    ### BEGIN SOLUTION\n    b = 2\n    ### END SOLUTION\n    return b"
    stub = "def f():\n    a = 1\n    # YOUR CODE HERE\n    raise NotImplementedError\n    return b"
    assert without_solution(source, "here") == (stub, 1)
    assert without_delimiters(source) == "def f():\n    a = 1\n    b = 2\n    return b"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "### BEGIN SOLUTION\n### BEGIN SOLUTION\n### END SOLUTION",
            "here, line 2: BEGIN SOLUTION inside the one of line 1",
        ),
        ("x\n### END SOLUTION", "here, line 2: END SOLUTION without a BEGIN SOLUTION"),
        ("### BEGIN SOLUTION\nx", "here, line 1: BEGIN SOLUTION without an END SOLUTION"),
    ],
)
def test_unbalanced_and_nested_delimiters_are_named(source: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        without_solution(source, "here")


def test_the_exercise_has_no_solution_no_output_and_keeps_roles_and_ids(sample: LessonFiles) -> None:
    solution, exercise = read_notebook(sample.solution), read_notebook(sample.exercise)
    text = sample.exercise.read_text()
    assert "SOLUTION" not in text
    assert "-(-num_tokens // block_size)" not in text
    assert [c["id"] for c in exercise["cells"]] == [c["id"] for c in solution["cells"]]
    assert [role(c) for c in exercise["cells"]] == [role(c) for c in solution["cells"]]
    assert exercise["metadata"]["infra_lab"] == {"kind": "exercise", "section": "4.2"}
    assert sum("raise NotImplementedError" in c["source"] for c in exercise["cells"]) == 2


def test_building_twice_gives_the_same_bytes_even_from_a_solution_that_was_run(tmp_path: Path) -> None:
    files = write_sample_course(tmp_path / "labs")
    before = files.exercise.read_bytes()
    assert [one.changed for one in build_exercises(tmp_path)] == [False]
    run = nbformat.read(files.solution, as_version=4)
    for number, one in enumerate(run.cells):
        if one.cell_type == "code":
            one.execution_count = number + 1
            one.outputs = [nbformat.v4.new_output("stream", text="3")]
            one.metadata["execution"] = {"iopub.execute_input": "2026"}
    run.metadata["widgets"] = {"x": 1}
    nbformat.write(run, files.solution)
    assert [one.changed for one in build_exercises(files.solution)] == [False]
    assert files.exercise.read_bytes() == before


def test_cells_without_ids_get_the_same_ones_every_time(tmp_path: Path) -> None:
    files = write_sample_course(tmp_path / "labs")
    raw = json.loads(files.solution.read_text())
    for one in raw["cells"]:
        one["id"] = "same"
    files.solution.write_text(json.dumps(raw))
    build_exercises(files.solution)
    first = files.exercise.read_bytes()
    assert [one.changed for one in build_exercises(files.solution)] == [False]
    assert files.exercise.read_bytes() == first
    ids = [c["id"] for c in read_notebook(files.exercise)["cells"]]
    assert len(set(ids)) == len(ids)


def test_check_only_says_what_is_out_of_date_and_writes_nothing(tmp_path: Path) -> None:
    files = write_sample_course(tmp_path / "labs")
    files.exercise.write_text(files.exercise.read_text() + "\n")
    edited = files.exercise.read_bytes()
    assert [one.changed for one in build_exercises(tmp_path, check_only=True)] == [True]
    assert files.exercise.read_bytes() == edited
    files.exercise.unlink()
    assert [one.changed for one in build_exercises(tmp_path, check_only=True)] == [True]
    assert not files.exercise.exists()


def _edit(index: int, **changes: object) -> Callable[[nbformat.NotebookNode], None]:
    def change(notebook: nbformat.NotebookNode) -> None:
        notebook.cells[index].metadata["infra_lab"].update(changes)

    return change


def _drop(index: int) -> Callable[[nbformat.NotebookNode], None]:
    return lambda notebook: notebook.cells.pop(index) and None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_edit(3, role="anwser"), r"cell 4 \(answer-blocks\): unknown role 'anwser'"),
        (_edit(3, role="setup"), r"cell 4 \(answer-blocks\): a solution in a cell that is no answer"),
        (_edit(3, exercise=""), r"cell 4 \(answer-blocks\): role 'answer' without \"exercise\""),
        (_edit(2, role="answer", exercise="x"), r"cell 3 \(parameters\): an answer without BEGIN SOLUTION"),
        (_drop(4), "exercise 'blocks' has an answer and no check cell"),
        (_drop(3), "exercise 'blocks' has a check and no answer cell"),
        (_edit(8, exercise="blocks"), "exercise 'slots' has an answer and no check cell"),
        (lambda nb: nb.cells.append(cell("x", "y", role="check", exercise="slots")), "'slots' has two check cells"),
    ],
)
def test_a_solution_that_cannot_be_built_is_refused(
    change: Callable[[nbformat.NotebookNode], None], message: str
) -> None:
    notebook = solution_notebook()
    change(notebook)
    with pytest.raises(ConfigError, match=message):
        student_notebook(notebook, PATH)


def test_a_notebook_of_no_section_is_refused() -> None:
    notebook = solution_notebook()
    notebook.metadata = {}
    assert student_notebook(notebook, PATH)["metadata"]["infra_lab"]["section"] == "4.2", "from the file's name"
    with pytest.raises(ConfigError, match="says no section"):
        student_notebook(notebook, Path("solutions/other.ipynb"))


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "is empty"), ("{", "not JSON"), ("[]", "not a notebook"), ('{"nbformat": 4, "cells": [3]}', "not a valid notebook"),
     ('{"nbformat": 3, "worksheets": []}', "not a notebook of format 4"), ("[" * 100_000, "not JSON")],
)  # fmt: skip
def test_a_file_that_is_no_notebook_is_refused_by_name(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "x.ipynb"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_notebook(path)


def test_a_written_notebook_reads_back(sample: LessonFiles, tmp_path: Path) -> None:
    notebook = read_notebook(sample.exercise)
    (tmp_path / "x.ipynb").write_text(notebook_text(notebook))
    assert read_notebook(tmp_path / "x.ipynb") == notebook
