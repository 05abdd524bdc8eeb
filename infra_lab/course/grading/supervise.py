"""One worker process a notebook, in a temporary folder, ended with everything it started."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from contextlib import suppress
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

import psutil

from infra_lab.course.grading.kernel_side import limit_writes_at_start
from infra_lab.course.grading.transcript import CellRun, read_transcript
from infra_lab.course.grading.worker import Job
from infra_lab.course.notebooks import Notebook, notebook_text

_MARK = "INFRA_LAB_GRADING_JOB"
"""Environment variable by which a run's processes are known, even those that left its process group."""


class GradingStoppedError(Exception):
    """The user stopped the grading."""


class Outcome(NamedTuple):
    """How a run ended."""

    cells: list[CellRun]
    seconds: float
    out_of_time: bool
    """The whole notebook took longer than it may."""
    failure: str
    """What the worker said if it failed for a reason of its own; empty otherwise."""


def run_notebook(
    notebook: Notebook,
    parameters: dict[str, Any],
    *,
    labs: Path,
    cell_timeout_s: int,
    total_timeout_s: float,
    memory_bytes: int,
    max_output_bytes: int,
    threads: int,
    stop: Event,
) -> Outcome:
    """Run a notebook in a process of its own. Raises GradingStoppedError when `stop` is set meanwhile."""
    folder = Path(tempfile.mkdtemp(prefix="grade-"))
    mark = uuid.uuid4().hex
    began = time.monotonic()
    try:
        job = Job(str(folder), parameters, cell_timeout_s, memory_bytes, max_output_bytes)
        job.work.mkdir()
        job.notebook.write_text(notebook_text(notebook), encoding="utf-8")
        limit_writes_at_start(folder / "ipython", max_output_bytes)
        with (folder / "worker.log").open("wb") as log:
            worker = subprocess.Popen(
                [sys.executable, "-m", "infra_lab.course.grading.worker", str(job.write())],
                env=_environment(folder, labs, threads, mark), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                cwd=folder, start_new_session=True,
            )  # fmt: skip
            try:
                out_of_time = _wait(worker, began + total_timeout_s, stop)
            finally:
                _end_everything(mark)
                worker.wait()
        failed = worker.returncode != 0 and not out_of_time
        failure = _last_line(folder / "worker.log") if failed else ""
        return Outcome(read_transcript(job.transcript), time.monotonic() - began, out_of_time, failure)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _environment(folder: Path, labs: Path, threads: int, mark: str) -> dict[str, str]:
    package = str(Path(__file__).resolve().parents[3])
    search = os.pathsep.join(part for part in (package, os.environ.get("PYTHONPATH")) if part)
    return {
        **os.environ,
        _MARK: mark,
        "PYTHONPATH": search,
        "INFRA_LAB_PROGRESS": str(folder / "progress.json"),
        "INFRA_LAB_LABS": str(labs),
        "IPYTHONDIR": str(folder / "ipython"),
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
        "MPLBACKEND": "agg",
    }


def _wait(worker: "subprocess.Popen[bytes]", deadline: float, stop: Event) -> bool:
    """Wait for the worker's end; return whether its time ran out."""
    while worker.poll() is None:
        if stop.is_set():
            raise GradingStoppedError
        if time.monotonic() > deadline:
            return True
        with suppress(subprocess.TimeoutExpired):
            worker.wait(0.1)
    return False


def _end_everything(mark: str) -> None:
    """Kill the processes of one run, and those that they left behind: all that carry its mark in their environment."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(_MARK) == mark:
                process.kill()


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "the worker ended without a word"
