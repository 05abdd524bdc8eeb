"""Grade a notebook or a folder: each submission in its own process, several at a time, each with a row."""

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

from infra_lab.course.catalog import lesson_files
from infra_lab.course.folders import labs_path
from infra_lab.course.grading.assemble import assemble, check_cells
from infra_lab.course.grading.parameters import refuse_unknown_parameters
from infra_lab.course.grading.score import GradeRow, score
from infra_lab.course.grading.submissions import Submission, find_submissions, section_answered
from infra_lab.course.grading.supervise import GradingStoppedError, run_notebook
from infra_lab.course.notebooks import Notebook, read_notebook
from infra_lab.errors import ConfigError

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class GradingLimits:
    """What one notebook may use."""

    cell_timeout_s: int = 60
    total_timeout_s: float = 600.0
    memory_mib: int = 6144
    """Of data, for each process; importing torch and running the tiny model takes under 2,048."""
    max_output_bytes: int = 5_000_000


def grade(
    path: Path,
    *,
    labs: Path | None = None,
    parameters: dict[str, Any] | None = None,
    limits: GradingLimits | None = None,
    jobs: int = 1,
    on_row: Callable[[GradeRow], None] = lambda row: None,
) -> list[GradeRow]:
    """Grade all submissions at or below a path; `on_row` is told each row when it is done.

    Rows come in the order of the file names. When the user interrupts, what is done keeps its row and the rest says
    "not-graded", in a KeyboardInterrupt whose first argument is the list. Raises ConfigError if there is nothing to grade,
    or for a parameter that an exercise does not have.
    """
    submissions = find_submissions(path)
    grader = _Grader(labs or labs_path(), parameters or {}, limits or GradingLimits(), jobs)
    refuse_unknown_parameters(grader.parameters, submissions, grader.labs)
    rows: dict[Submission, GradeRow] = {}
    pool = ThreadPoolExecutor(max_workers=max(1, jobs))
    futures: dict[Future[GradeRow], Submission] = {pool.submit(grader.grade, one): one for one in submissions}
    try:
        for future in as_completed(futures):
            rows[futures[future]] = row = future.result()
            on_row(row)
    except KeyboardInterrupt:
        grader.stop.set()
        pool.shutdown(cancel_futures=True)
        rows |= {one: future.result() for future, one in futures.items() if future.done() and not future.cancelled()}
        raise KeyboardInterrupt([rows.get(one) or _interrupted(one) for one in submissions]) from None
    finally:
        grader.stop.set()
        pool.shutdown(cancel_futures=True)
    return [rows[one] for one in submissions]


def _interrupted(one: Submission) -> GradeRow:
    return GradeRow(one.student, str(one.path), "", "not-graded", message="the grading was interrupted")


class _Grader:
    """What all submissions of one run share."""

    def __init__(self, labs: Path, parameters: dict[str, Any], limits: GradingLimits, jobs: int) -> None:
        self.labs, self.parameters, self.limits = labs, parameters, limits
        self.stop = Event()
        self._threads = max(1, (os.cpu_count() or 1) // max(1, jobs))

    def grade(self, one: Submission) -> GradeRow:
        """Grade one submission; whatever is wrong with it, or with the grading of it, becomes its row."""
        try:
            return self._grade(one)
        except GradingStoppedError:
            return _interrupted(one)
        except Exception as error:  # noqa: BLE001 - the other submissions must not wait for this one
            return GradeRow(one.student, str(one.path), "", "failed", message=f"{type(error).__name__}: {error}")

    def _grade(self, one: Submission) -> GradeRow:
        notebook: Notebook | None = None
        problem = ""
        try:
            notebook = read_notebook(one.path)
        except ConfigError as error:
            problem = str(error)
        try:
            section = section_answered(one.path, notebook, self.labs)
            pristine = read_notebook(lesson_files(section, self.labs).exercise)
        except ConfigError as error:
            return GradeRow(one.student, str(one.path), "", "unreadable", message=problem or str(error))
        if notebook is None:
            checks = check_cells(pristine)
            return GradeRow(
                one.student, str(one.path), section.number, "unreadable", message=problem,
                points=sum(check.points for check in checks), scores={check.exercise: 0.0 for check in checks},
            )  # fmt: skip
        assembled = assemble(notebook, pristine)
        outcome = run_notebook(
            assembled.notebook, self.parameters, labs=self.labs, cell_timeout_s=self.limits.cell_timeout_s,
            total_timeout_s=self.limits.total_timeout_s, memory_bytes=self.limits.memory_mib * MIB,
            max_output_bytes=self.limits.max_output_bytes, threads=self._threads, stop=self.stop,
        )  # fmt: skip
        return score(one.student, str(one.path), section.number, assembled, outcome)
