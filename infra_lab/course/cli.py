"""The course from the shell: `infra-lab exercises`, `lessons`, `claims` and `grade`; the main command registers them."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from infra_lab.console import errors, readable_errors

if TYPE_CHECKING:
    from infra_lab.course.grading import GradeRow, GradingLimits

exercises_app = typer.Typer(no_args_is_help=True, help="Write the exercise notebooks from their solutions.")
lessons_app = typer.Typer(no_args_is_help=True, help="Run the lessons, hold them to the contract, list them.")

_CHECK = typer.Option("--check", help="Write nothing; exit with 1 if something is out of date.")
_LESSON = typer.Argument(help="A lesson or a folder; all lessons if left out.")


@exercises_app.callback()
def _exercises() -> None:
    """Write the exercise notebooks from their solutions."""


@exercises_app.command("build")
def exercises_build(
    path: Annotated[Path | None, typer.Argument(help="A solution or a folder; all of the labs if left out.")] = None,
    check: Annotated[bool, _CHECK] = False,
) -> None:
    """Write each exercise notebook from its solution; the same source gives the same bytes."""
    from infra_lab.course.exercises import build_exercises

    with readable_errors():
        built = build_exercises(path, check_only=check)
        for one in built:
            state = ("out of date" if check else "written") if one.changed else "up to date"
            _line(f"{one.path}: {state}")
        if check and any(one.changed for one in built):
            raise typer.Exit(1)


@lessons_app.command("run")
def lessons_run(
    path: Annotated[Path | None, _LESSON] = None,
    timeout: Annotated[int, typer.Option(help="Seconds that one cell may take.")] = 300,
) -> None:
    """Run lessons from top to bottom in place, keeping their outputs and nothing that only this run knows."""
    from infra_lab.course.run_lessons import find_lessons, run_lesson

    with readable_errors():
        for lesson in find_lessons(path):
            done = run_lesson(lesson, cell_timeout_s=timeout)
            late = "  (a lesson should take under 60 s)" if done.seconds > 60 else ""
            _line(f"{done.path}: {done.seconds:.0f} s, {done.num_bytes / 1000:.0f} kB{late}")


@lessons_app.command("check")
def lessons_check(path: Annotated[Path | None, _LESSON] = None) -> None:
    """Hold lessons against the contract; exit with 1 if one breaks it."""
    from infra_lab.course.contract import check_lesson
    from infra_lab.course.run_lessons import find_lessons

    with readable_errors():
        broken = 0
        for lesson in find_lessons(path):
            problems = check_lesson(lesson)
            broken += len(problems)
            _line(f"{lesson}: {f'{len(problems)} to mend' if problems else 'keeps the contract'}")
            for problem in problems:
                _line(f"  {problem}")
        if broken:
            raise typer.Exit(1)


@lessons_app.command("toc")
def lessons_toc(check: Annotated[bool, _CHECK] = False) -> None:
    """Write the table of contents, labs/README.md, from the catalog."""
    from infra_lab.course.readme import write_toc

    with readable_errors():
        changed = write_toc(check_only=check)
        _line(f"labs/README.md: {('out of date' if check else 'written') if changed else 'up to date'}")
        if check and changed:
            raise typer.Exit(1)


def claims(
    section: Annotated[str | None, typer.Argument(help="A section, such as 4.2; all if left out.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Exit with 1 if a lesson and the ledger disagree.")] = False,
) -> None:
    """Show which claims of the chapter are settled, by the verdicts stored in the lessons."""
    from infra_lab.course.claims_report import claim_states, unlisted_verdicts
    from infra_lab.course.tables import claims_table, section_table

    with readable_errors():
        states = claim_states(section)
        Console().print(claims_table(states) if section is None else section_table(states))
        problems = [state.problem for state in states if state.problem]
        problems += unlisted_verdicts() if section is None else []
        for problem in problems:
            errors.print(escape(problem), highlight=False, soft_wrap=True)
        if check and problems:
            raise typer.Exit(1)


def grade(
    path: Annotated[Path, typer.Argument(help="A notebook, or a folder: alice/NAME.ipynb or alice_NAME.ipynb.")],
    csv: Annotated[Path | None, typer.Option("--csv", help="Write the marks to this file.")] = None,
    timeout: Annotated[int, typer.Option(help="Seconds that one cell may take.")] = 60,
    total_timeout: Annotated[float, typer.Option(help="Seconds that one notebook may take.")] = 600.0,
    memory: Annotated[int, typer.Option(help="MiB of data that a notebook's process may have.")] = 6144,
    parameters: Annotated[
        list[str] | None, typer.Option("--parameters", "-p", help="name=value; may be given several times.")
    ] = None,
    jobs: Annotated[int, typer.Option(help="Notebooks graded at a time.")] = max(1, (os.cpu_count() or 1) // 2),
) -> None:
    """Grade exercises: the student's answers, run between the checks as they were handed out.

    Exit code 0: every notebook was graded, whatever its marks. 1: one could not be (its row says why). 130: interrupted;
    the marks so far are in the CSV. The code runs with your rights: see infra_lab/course/grading.
    """
    from infra_lab.course.grading import GradingLimits
    from infra_lab.course.grading.csv_table import refuse_unwritable, write_csv
    from infra_lab.course.grading.parameters import parse_parameters
    from infra_lab.course.tables import marks_table

    with readable_errors():
        if csv is not None:
            refuse_unwritable(csv)
        limits = GradingLimits(timeout, total_timeout, memory)
        rows, complete = _grade(path, parse_parameters(parameters or ()), limits, jobs)
        if csv is not None:
            write_csv(rows, csv)
        Console().print(marks_table(rows))
        if not complete:
            raise typer.Exit(130)
        if any(row.status in ("unreadable", "failed") for row in rows):
            raise typer.Exit(1)


def _grade(
    path: Path, parameters: dict[str, object], limits: "GradingLimits", jobs: int
) -> "tuple[list[GradeRow], bool]":
    """Grade behind a progress bar; return the rows, and whether the user let it end."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from infra_lab.course.grading import grade as grade_all
    from infra_lab.course.grading.submissions import find_submissions

    num_submissions = len(find_submissions(path))
    columns = (
        TextColumn("grading"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=errors, transient=True) as bar:
        task = bar.add_task("", total=num_submissions)
        try:
            rows = grade_all(
                path, parameters=parameters, limits=limits, jobs=jobs,
                on_row=lambda row: bar.update(task, advance=1, description=escape(row.student)),
            )  # fmt: skip
        except KeyboardInterrupt as interrupt:
            if not interrupt.args:
                raise
            return interrupt.args[0], False
    return rows, True


def _line(text: str) -> None:
    Console().print(text, markup=False, highlight=False, soft_wrap=True)
