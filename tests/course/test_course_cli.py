"""`infra-lab exercises | lessons | claims | grade`: exit codes and one-line mistakes."""

from pathlib import Path

import nbformat
import pytest
import typer
from typer.testing import CliRunner, Result

from infra_lab.course import cli
from infra_lab.course.catalog import LessonFiles
from tests.course.grading_help import hand_in
from tests.course.sample import write_sample_course
from tests.course.sample.lesson import lesson_notebook

app = typer.Typer()
app.add_typer(cli.exercises_app, name="exercises")
app.add_typer(cli.lessons_app, name="lessons")
app.command()(cli.claims)
app.command()(cli.grade)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def course(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LessonFiles:
    files = write_sample_course(tmp_path / "labs")
    monkeypatch.setenv("INFRA_LAB_LABS", str(tmp_path / "labs"))
    return files


def test_exercises_build(course: LessonFiles) -> None:
    assert run("exercises", "build", "--check").exit_code == 0
    course.exercise.unlink()
    done = run("exercises", "build", "--check")
    assert done.exit_code == 1
    assert "out of date" in done.output
    assert "written" in run("exercises", "build").output
    assert run("exercises", "build", "--check").exit_code == 0


def test_lessons_run_check_and_toc(course: LessonFiles) -> None:
    nbformat.write(lesson_notebook(), course.lesson)
    done = run("lessons", "check")
    assert done.exit_code == 1
    assert "no cell was run" in done.output
    assert "[executed]" in done.output, "square brackets are not markup"
    assert run("lessons", "run").exit_code == 0
    assert "mutants.toml [exercise-files]" in run("lessons", "check", course.lesson).output.replace("\n", " ")
    assert run("lessons", "toc", "--check").exit_code == 1
    assert run("lessons", "toc").exit_code == 0
    assert run("lessons", "toc", "--check").exit_code == 0
    assert run("claims", "4.2", "--check").exit_code == 0


def test_claims_that_no_lesson_settles(course: LessonFiles) -> None:
    assert run("claims").exit_code == 0
    done = run("claims", "4.2", "--check")
    assert done.exit_code == 1
    assert "4.2-01: there is no notebook" in done.stderr


def test_grade(course: LessonFiles, tmp_path: Path) -> None:
    hand_in(course, tmp_path / "in" / "alice" / course.lesson.name, blocks="def num_blocks(n):\n    return 2")
    done = run("grade", tmp_path / "in", "--csv", tmp_path / "marks.csv")
    assert done.exit_code == 0, "whatever the marks"
    assert "alice" in done.stdout
    assert "alice" in (tmp_path / "marks.csv").read_text()
    (tmp_path / "in" / "bob_4_2_kv_cache.ipynb").write_text("")
    done = run("grade", tmp_path / "in")
    assert done.exit_code == 1, "one could not be graded"
    assert "unreadable" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["grade", "nowhere"], "there is no nowhere; expected a notebook"),
        (["grade", ".", "-p", "x"], "expected name=value"),
        (["grade", ".", "--csv", "."], "choose another CSV file"),
        (["claims", "9"], "no claims of section '9'"),
        (["lessons", "check", "nowhere"], "no lesson of the course at or below nowhere"),
        (["exercises", "build", "nowhere"], "no solutions/*.ipynb below nowhere"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(arguments: list[str], message: str, course: LessonFiles) -> None:
    done = run(*arguments)
    assert done.exit_code == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
