"""The lesson contract: a lesson that keeps it passes, and each rule catches the lesson that breaks it."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest

from infra_lab.course.catalog import LessonFiles, lesson_files, section
from infra_lab.course.contract import RULES, check_lesson
from infra_lab.course.contract.lesson import Lesson
from infra_lab.course.contract.prose import prose_problems
from infra_lab.course.output import CLAIM_MIME, WIDGET_MIME
from infra_lab.course.run_lessons import run_lesson
from tests.course.sample import MUTANTS, write_sample_course
from tests.course.sample.lesson import HEAD, lesson_notebook

Change = Callable[[nbformat.NotebookNode, LessonFiles], None]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a course that keeps the contract."""
    root = tmp_path_factory.mktemp("contract")
    files = write_sample_course(root / "labs")
    files.mutants.write_text(MUTANTS)
    nbformat.write(lesson_notebook(), files.lesson)
    run_lesson(files.lesson)
    return root


def problems_after(change: Change | None, kept: Path, folder: Path) -> list[tuple[str, int | None]]:
    shutil.copytree(kept / "labs", folder / "labs")
    files = lesson_files(section("4.2"), folder / "labs")
    if change is not None:
        notebook = nbformat.read(files.lesson, as_version=4)
        change(notebook, files)
        nbformat.write(notebook, files.lesson)
    return [(problem.rule, problem.cell) for problem in check_lesson(files.lesson)]


def test_a_lesson_that_keeps_the_contract_has_no_problem(kept: Path, tmp_path: Path) -> None:
    assert problems_after(None, kept, tmp_path) == []


def tagged(notebook: nbformat.NotebookNode, tag: str) -> nbformat.NotebookNode:
    return next(cell for cell in notebook.cells if tag in cell.metadata.get("tags", []))


def head(old: str, new: str) -> Change:
    assert old in HEAD

    def change(notebook: nbformat.NotebookNode, files: LessonFiles) -> None:
        notebook.cells[0].source = HEAD.replace(old, new)

    return change


def source(tag: str, old: str, new: str) -> Change:
    def change(notebook: nbformat.NotebookNode, files: LessonFiles) -> None:
        cell = tagged(notebook, tag)
        assert old in cell.source
        cell.source = cell.source.replace(old, new)

    return change


def edit(action: Callable[[nbformat.NotebookNode], object]) -> Change:
    return lambda notebook, files: action(notebook) and None


def on_disk(action: Callable[[LessonFiles], object]) -> Change:
    return lambda notebook, files: action(files) and None


def swap(notebook: nbformat.NotebookNode) -> None:
    """The mechanism before the prediction; counts stay in order because one of the two is text."""
    cells = notebook.cells
    cells[3], cells[4] = cells[4], cells[3]


def ignore_most(notebook: nbformat.NotebookNode) -> None:
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in code[: len(code) // 2 + len(code) % 2]:
        cell.metadata["tags"] = sorted({*cell.metadata["tags"], "nbval-ignore-output"})


def clear_outputs(notebook: nbformat.NotebookNode) -> None:
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []


def clear_all(notebook: nbformat.NotebookNode) -> None:
    clear_outputs(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.execution_count = None


def show_error(notebook: nbformat.NotebookNode) -> None:
    tagged(notebook, "invariants").outputs = [nbformat.v4.new_output("error", ename="E", evalue="v", traceback=[])]


def output(notebook: nbformat.NotebookNode, tag: str, data: dict[str, object]) -> None:
    tagged(notebook, tag).outputs.append(nbformat.v4.new_output("display_data", data))


BROKEN: dict[str, tuple[Change, set[tuple[str, int | None]]]] = {
    "head is code": (edit(lambda nb: nb.cells.pop(0)), {("head", 1)}),
    "no number": (head("# 4.2 ", "# "), {("head-title", 1)}),
    "another section's number": (head("# 4.2 ", "# 4.3 "), {("head-title", 1)}),
    "no Chinese title": (head("KV Cache 管理与分层存储", ""), {("head-chinese-title", 1)}),
    "no outcome": (head("After this you can", "You will"), {("head-outcome", 1)}),
    "no minutes": (head("60 minutes", "an hour"), {("head-minutes", 1)}),
    "no tier": (head("CPU, GPU adds a measurement", "anywhere"), {("head-tier", 1)}),
    "no prerequisites": (head("Before: 0.", ""), {("head-before", 1)}),
    "a part without its tag": (
        edit(lambda nb: tagged(nb, "summary").metadata.update(tags=[])), {("part-missing", None)},
    ),
    "parts in another order": (edit(swap), {("part-order", 4)}),
    "another lesson's setup": (source("setup", 'lesson("4.2")', 'lesson("4.1")'), {("setup-call", 2)}),
    "no prediction": (source("predict", "predict(", "print("), {("predict-call", 4)}),
    "no link to the exercise": (source("exercise", "exercises/4_2", "exercises/4_1"), {("exercise-call", 17)}),
    "a claim is not settled": (source("claims", 'claim("4.2-01"', 'claim("4.2-02"'), {("claims", None)}),
    "nothing was run": (edit(clear_all), {("executed", None), ("panel-picture", 6)}),
    "one cell was not run": (
        edit(lambda nb: tagged(nb, "invariants").update(execution_count=None)), {("executed", 7)},
    ),
    "run out of order": (
        edit(lambda nb: tagged(nb, "invariants").update(execution_count=40)), {("executed-in-order", None)},
    ),
    "outputs cleared": (edit(clear_outputs), {("outputs", None), ("panel-picture", 6)}),
    "a stored error": (edit(show_error), {("no-error", 7)}),
    "widget state": (edit(lambda nb: nb.metadata.update(widgets={"state": {}})), {("widget-state", None)}),
    "a live widget": (edit(lambda nb: output(nb, "problem", {WIDGET_MIME: {}, "text/plain": ""})), {("widget-view", 3)}),
    "a folder of this machine": (
        edit(lambda nb: output(nb, "problem", {"text/plain": f"{Path.home()}/x"})), {("machine-path", 3)},
    ),
    "a folder of this machine, in Markdown": (
        edit(lambda nb: output(nb, "problem", {"text/markdown": f"{Path.home()}/x"})), {("machine-path", 3)},
    ),
    "too big": (edit(lambda nb: output(nb, "problem", {"image/png": "A" * 200_000})), {("size", None)}),
    "no picture of the panel": (
        edit(lambda nb: tagged(nb, "panel").outputs[0].data.pop("image/png")), {("panel-picture", 6)},
    ),
    "most outputs ignored": (edit(ignore_most), {("compared", None)}),
    "a figure without a source": (source("summary", "(Kwon et al. 2023)", ""), {("sourced-figures", 18)}),
    "no solution": (on_disk(lambda files: files.solution.unlink()), {("exercise-files", None)}),
    "no exercise": (on_disk(lambda files: files.exercise.unlink()), {("exercise-files", None)}),
    "no mutants": (on_disk(lambda files: files.mutants.unlink()), {("exercise-files", None)}),
    "an edited exercise": (
        on_disk(lambda files: files.exercise.write_text(files.exercise.read_text().replace("Exercise", "Exercice"))),
        {("exercise-current", None)},
    ),
    "a mutant that fits nowhere": (
        on_disk(lambda files: files.mutants.write_text(MUTANTS.replace("-(-num_tokens", "(num_blocks"))),
        {("exercise-sound", None)},
    ),
    "a check that no mutant tries": (
        on_disk(lambda files: files.mutants.write_text(MUTANTS.split("[[mutant]]\nname = \"wrong slot")[0])),
        {("mutants", None)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("broken", BROKEN)
def test_each_breach_is_found_and_nothing_else(broken: str, kept: Path, tmp_path: Path) -> None:
    change, expected = BROKEN[broken]
    assert set(problems_after(change, kept, tmp_path)) == expected


def test_every_rule_has_a_mutant() -> None:
    folder = Path(__file__).parents[2] / "infra_lab" / "course" / "contract"
    code = "".join(path.read_text() for path in folder.glob("*.py"))
    named = set(re.findall(r"Problem\(\s*\"([a-z-]+)\"", code))
    named |= {f"head-{name}" for name in re.findall(r"\"([a-z-]+)\": \(r\"", code)} | {"head-chinese-title"}
    named |= {f"{part}-call" for part in ("setup", "predict", "exercise")}
    caught = {rule for _, expected in BROKEN.values() for rule, _ in expected}
    assert named - caught == set()
    assert len(RULES) == 6


@pytest.mark.parametrize(
    ("text", "figure"),
    [
        ("It takes 20 ms.", "20 ms"), ("H100 moves 3.35 TB/s.", "3.35 TB/s"), ("about 40% of it", "40%"), ("7× faster", "7×"),
        ("It costs $2.", "$2"), ("Llama 2 has a block of 16 tokens.", None), ("in 3 steps", None), ("Section 4.2 says", None),
        ("`20 ms` in code", None), ("```\n20 ms\n```", None), ("$T = 20 s$ as a formula", None), ("int8 and fp16", None),
        ("20 ms ([vLLM](https://x.y))", None), ("20 ms (Kwon et al. 2023)", None), ("20 ms, which is claim 4.2-03", None),
        ("- 20 ms\n\nSee (Kwon et al. 2023)", "20 ms"),
    ],
)  # fmt: skip
def test_figures_with_units_need_a_source_in_their_paragraph(text: str, figure: str | None) -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(part) for part in ("60 minutes", text)])
    found = [p.message for p in prose_problems(Lesson(Path("x"), section("4.2"), notebook, Path("labs")))]
    assert [message.split("`")[1] for message in found] == ([figure] if figure else [])


def test_the_first_lesson_is_excused_from_some_parts(kept: Path, tmp_path: Path) -> None:
    files = write_sample_course(tmp_path / "labs")
    notebook = nbformat.read(lesson_files(section("4.2"), kept / "labs").lesson, as_version=4)
    notebook.cells = [
        cell for cell in notebook.cells if not {"break-it", "claims", "gpu"} & set(cell.metadata.get("tags", []))
    ]
    first = files.lesson.parents[1] / "00_start_here.ipynb"
    nbformat.write(notebook, first)
    rules = {problem.rule for problem in check_lesson(first)}
    assert "part-missing" not in rules
    assert "claims" not in rules
    assert {"head-title", "setup-call", "exercise-files"} <= rules, "it is another section's lesson under that name"


def test_the_sample_lesson_shows_its_verdicts(kept: Path) -> None:
    notebook = nbformat.read(lesson_files(section("4.2"), kept / "labs").lesson, as_version=4)
    shown = [o for cell in notebook.cells for o in cell.get("outputs", []) if CLAIM_MIME in o.get("data", {})]
    assert len(shown) == 7
