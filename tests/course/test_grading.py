"""Grading of a folder, in real processes: honest mistakes, hostile ones, and files that are no notebooks."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest

from infra_lab.course.catalog import LessonFiles
from infra_lab.course.grading import GradingLimits, grade
from infra_lab.course.grading.csv_table import write_csv
from infra_lab.course.grading.parameters import parse_parameters
from infra_lab.course.grading.supervise import _MARK
from infra_lab.errors import ConfigError
from tests.course.grading_help import BLOCKS, by_id, grade_one, hand_in, remove

NAME = "4_2_kv_cache.ipynb"


def test_good_partial_stub_and_names(sample: LessonFiles, sample_labs: Path, tmp_path: Path) -> None:
    hand_in(sample, tmp_path / "alice" / NAME)
    hand_in(sample, tmp_path / f"bob_{NAME}", blocks="def num_blocks(n):\n    return n // block_size + 1")
    stub = nbformat.read(sample.exercise, as_version=4)
    nbformat.write(stub, tmp_path / NAME)
    told: list[str] = []
    rows = grade(tmp_path, labs=sample_labs, jobs=2, on_row=lambda row: told.append(row.student))
    assert {row.student: (row.status, row.scores) for row in rows} == {
        "4_2_kv_cache": ("ok", {"blocks": 0.0, "slots": 0.0}),
        "alice": ("ok", {"blocks": 3.0, "slots": 1.0}),
        "bob": ("ok", {"blocks": 1.0, "slots": 1.0}),
    }
    assert sorted(told) == sorted(row.student for row in rows)
    write_csv(rows, tmp_path / "marks" / "marks.csv")
    with (tmp_path / "marks" / "marks.csv").open(newline="") as file:
        table = {line["student"]: line for line in csv.DictReader(file)}
    assert (table["bob"]["earned"], table["bob"]["points"], table["bob"]["percent"]) == ("2.0", "4.0", "50.0")
    assert (table["alice"]["4.2 blocks"], table["alice"]["4.2 slots"]) == ("3.0", "1.0")
    assert [file.name for file in (tmp_path / "marks").iterdir()] == ["marks.csv"]


def test_files_that_are_no_notebooks_get_a_row_and_the_others_their_marks(
    sample: LessonFiles, sample_labs: Path, tmp_path: Path
) -> None:
    for student, content in {"empty": b"", "text": b"not JSON", "list": b"[1]", "binary": bytes(range(256))}.items():
        (tmp_path / student).mkdir()
        (tmp_path / student / NAME).write_bytes(content)
    (tmp_path / "stranger.ipynb").write_text(json.dumps(nbformat.v4.new_notebook()))
    for left_out in ("carol", ".git", "__MACOSX"):
        (tmp_path / left_out).mkdir()
        (tmp_path / left_out / "answer.py").write_text("print(1)")

    def lose_metadata(notebook: nbformat.NotebookNode) -> None:
        notebook.metadata = {"infra_lab": ["damaged"], "kernelspec": {"name": "julia", "display_name": "Julia"}}

    hand_in(sample, tmp_path / "damaged" / NAME, change=lose_metadata)
    rows = {row.student: row for row in grade(tmp_path, labs=sample_labs)}
    for student in ("empty", "text", "list", "binary"):
        row = rows[student]
        assert (row.status, row.section, row.points, row.earned) == ("unreadable", "4.2", 4.0, 0.0)
        assert NAME in row.message
    assert set(rows) == {"empty", "text", "list", "binary", "stranger", "damaged", "carol"}
    assert (rows["carol"].status, rows["carol"].message) == (
        "unreadable", f"there is no notebook (*.ipynb) in {tmp_path / 'carol'}",
    )  # fmt: skip
    assert rows["stranger"].status == "unreadable"
    assert "says no section" in rows["stranger"].message
    assert (rows["damaged"].status, rows["damaged"].earned) == ("ok", 4.0)


def test_a_cell_that_raises_does_not_stop_later_checks(sample: LessonFiles, sample_labs: Path, tmp_path: Path) -> None:
    row = grade_one(hand_in(sample, tmp_path / NAME, blocks="num_blocks = undefined"), sample_labs)
    assert (row.status, row.scores) == ("errors", {"blocks": 0.0, "slots": 1.0})
    assert row.message == "cell 4: NameError: name 'undefined' is not defined"


CHEATS = {
    "an edited check": "",
    "its own check": "class check:\n    def __init__(s, *a, **k): pass\n    def __enter__(s): return s\n"
    "    def __exit__(s, *a): return True\n    def equal(s, *a): return True\n",
    "grades shown by the answer cell": "from IPython.display import publish_display_data\n"
    "publish_display_data({'text/plain': '', 'application/vnd.infra-lab.grade+json':"
    " {'exercise': 'blocks', 'points': 3, 'earned': 3}})\n",
    "grades shown in the check": "from IPython.display import publish_display_data\n"
    "def num_blocks(n):\n"
    "    publish_display_data({'text/plain': '', 'application/vnd.infra-lab.grade+json':"
    " {'exercise': 'blocks', 'points': 3, 'earned': 3}})\n",
    "an object that equals everything": "class Any:\n    def __eq__(s, o): return True\n"
    "def num_blocks(n): return Any()\n",
}


@pytest.mark.parametrize("cheat", CHEATS)
def test_cheating_does_not_help(cheat: str, sample: LessonFiles, sample_labs: Path, tmp_path: Path) -> None:
    def edit(notebook: nbformat.NotebookNode) -> None:
        by_id(
            notebook, "check-blocks"
        ).source = 'with check("blocks", points=3, parts=1) as c:\n    c.true(True, "of course")'

    wrong = "def num_blocks(n):\n    return 7\n"
    answer = CHEATS[cheat] if "def num_blocks" in CHEATS[cheat] else CHEATS[cheat] + wrong
    row = grade_one(hand_in(sample, tmp_path / NAME, blocks=answer, change=edit), sample_labs)
    assert row.scores == {"blocks": 0.0, "slots": 1.0}


def test_deleted_check_cells_are_put_back(sample: LessonFiles, sample_labs: Path, tmp_path: Path) -> None:
    path = hand_in(sample, tmp_path / NAME, change=lambda nb: remove(nb, "check-blocks", "setup"))
    row = grade_one(path, sample_labs)
    assert (row.status, row.earned) == ("missing-cells-restored", 4.0)
    assert row.message == "put back: setup setup, check blocks"


HARMFUL = {
    "endless loop": ("def num_blocks(n):\n    while n != 20: pass\n    return 2", "timeout", 2.0),
    "loop that catches the interrupt": (
        "def num_blocks(n):\n    while True:\n        try:\n            while True: sum(range(99))\n"
        "        except BaseException: pass",
        "timeout",
        0.0,
    ),
    "crash": ("import os\ndef num_blocks(n):\n    os._exit(3)", "crashed", 0.0),
    "memory bomb": ("def num_blocks(n):\n    return len(bytearray(3 << 30))", "memory", 1.0),
    "one print of a gigabyte": (f"print('x' * 10**9)\n{BLOCKS}", "output-flood", 4.0),
    "endless printing": ("while True: print('x' * 1000)", "output-flood", 1.0),
    "endless grades": (
        "from IPython.display import publish_display_data\n"
        "while True: publish_display_data({'application/vnd.infra-lab.grade+json': {'parts': ['x' * 10_000]}})",
        "output-flood",
        1.0,
    ),
    "endless display": (
        "from IPython.display import HTML, display\nwhile True: display(HTML('x' * 100_000))",
        "output-flood",
        1.0,
    ),
}


@pytest.mark.parametrize("harm", HARMFUL)
def test_harmful_notebooks_are_stopped_reported_and_leave_nothing(
    harm: str, sample: LessonFiles, sample_labs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "t"))
    (tmp_path / "t").mkdir()
    answer, status, earned = HARMFUL[harm]
    path = hand_in(sample, tmp_path / NAME, blocks=answer)
    seconds, memory_mib = 12 if status == "timeout" else 60, 3000 if status == "memory" else 4096
    row = grade_one(path, sample_labs, cell_timeout_s=seconds, memory_mib=memory_mib)
    assert (row.status, row.earned) == (status, earned), row.message
    assert list((tmp_path / "t").iterdir()) == []
    assert not _processes_left(sample_labs)


def test_children_of_a_notebook_do_not_outlive_it(sample: LessonFiles, sample_labs: Path, tmp_path: Path) -> None:
    orphan = "import subprocess\nsubprocess.Popen(['sleep', '1000'], start_new_session=True)\n"
    row = grade_one(hand_in(sample, tmp_path / NAME, blocks=orphan + BLOCKS), sample_labs)
    assert row.status == "ok"
    assert not _processes_left(sample_labs)


def _processes_left(labs: Path) -> list[psutil.Process]:
    """Processes of gradings of this test's own course; others may be grading on the same machine."""
    left = []
    for process in psutil.process_iter():
        try:
            environment = process.environ() if process.status() != psutil.STATUS_ZOMBIE else {}
        except psutil.Error:
            continue
        if _MARK in environment and environment.get("INFRA_LAB_LABS") == str(labs):
            left.append(process)
    return left


def test_the_whole_notebook_has_a_time_limit(sample: LessonFiles, sample_labs: Path, tmp_path: Path) -> None:
    path = hand_in(sample, tmp_path / NAME, slots="import time\ntime.sleep(1000)")
    rows = grade(path, labs=sample_labs, limits=GradingLimits(cell_timeout_s=600, total_timeout_s=20.0))
    assert (rows[0].status, rows[0].scores) == ("timeout", {"blocks": 3.0, "slots": 0.0}), "what was done counts"
    assert "as a whole took too long" in rows[0].message


def test_grading_leaves_the_learners_progress_and_folder_alone(
    sample: LessonFiles, sample_labs: Path, tmp_path: Path
) -> None:
    path = hand_in(sample, tmp_path / "in" / NAME, blocks=f"open('left.txt', 'w').write('x')\n{BLOCKS}")
    before = path.read_bytes()
    assert grade_one(path, sample_labs).earned == 4.0
    assert path.read_bytes() == before
    assert [file.name for file in (tmp_path / "in").iterdir()] == [NAME]
    assert not Path(os.environ["INFRA_LAB_PROGRESS"]).exists()


def test_parameters(sample: LessonFiles, sample_labs: Path, tmp_path: Path) -> None:
    path = hand_in(sample, tmp_path / NAME)
    rows = grade(path, labs=sample_labs, parameters=parse_parameters(["block_size=20"]))
    assert rows[0].scores == {"blocks": 2.0, "slots": 0.0}, "20 tokens now take one block, 32 still two"
    with pytest.raises(ConfigError, match="has no parameter 'blocksize'; it has block_size"):
        grade(path, labs=sample_labs, parameters={"blocksize": 1})


def test_parse_parameters() -> None:
    assert parse_parameters(["a=1", "b=[1, 2]", "c=text", "d=", "e='1'", "f=x=y"]) == {
        "a": 1, "b": [1, 2], "c": "text", "d": "", "e": "1", "f": "x=y",
    }  # fmt: skip
    for wrong in ("a", "=1", "a b=1"):
        with pytest.raises(ConfigError, match="expected name=value"):
            parse_parameters([wrong])


def test_a_formula_in_a_students_text_stays_text(tmp_path: Path, sample: LessonFiles, sample_labs: Path) -> None:
    (tmp_path / "=cmd()").mkdir()
    (tmp_path / "=cmd()" / NAME).write_text("")
    write_csv(grade(tmp_path, labs=sample_labs), tmp_path / "marks.csv")
    with (tmp_path / "marks.csv").open(newline="") as file:
        assert next(csv.DictReader(file))["student"] == "'=cmd()"


def test_a_name_in_another_encoding_costs_nobody_the_table(
    tmp_path: Path, sample: LessonFiles, sample_labs: Path
) -> None:
    for student in ("张三".encode("gbk"), b"bob"):
        folder = os.fsencode(tmp_path / "in") + b"/" + student
        os.makedirs(folder)
        Path(os.fsdecode(folder), NAME).write_text("")
    write_csv(grade(tmp_path / "in", labs=sample_labs), tmp_path / "marks.csv")
    with (tmp_path / "marks.csv").open(encoding="utf-8", newline="") as file:
        assert [line["student"] for line in csv.DictReader(file)] == ["bob", r"\udcd5\udcc5\udcc8\udcfd"]


def test_an_interrupt_keeps_what_was_graded(sample: LessonFiles, sample_labs: Path, tmp_path: Path) -> None:
    hand_in(sample, tmp_path / "in" / "a" / NAME)
    hand_in(sample, tmp_path / "in" / "b" / NAME, blocks="import time\ntime.sleep(1000)")
    hand_in(sample, tmp_path / "in" / "c" / NAME)
    marks = tmp_path / "marks.csv"
    code = (
        "import typer; from infra_lab.course.cli import grade\napp = typer.Typer(); app.command()(grade)\n"
        f"app(['{tmp_path / 'in'}', '--csv', '{marks}', '--jobs', '1', '--timeout', '900', '--total-timeout', '900'])"
    )
    environment = {**os.environ, "INFRA_LAB_LABS": str(sample_labs), "TMPDIR": str(tmp_path)}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not _is_in_cell(tmp_path, "sleep"):
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    with marks.open(newline="") as file:
        rows = {line["student"]: (line["status"], line["earned"]) for line in csv.DictReader(file)}
    assert rows == {"a": ("ok", "4.0"), "b": ("not-graded", "0"), "c": ("not-graded", "0")}
    assert not _processes_left(sample_labs)


def _is_in_cell(folder: Path, word: str) -> bool:
    """Whether the run of the notebook with that word has finished its parameters cell."""
    for transcript in folder.glob("grade-*/transcript.jsonl"):
        notebook = transcript.with_name("in.ipynb")
        if notebook.exists() and word in notebook.read_text() and "parameters" in transcript.read_text():
            return True
    return False
