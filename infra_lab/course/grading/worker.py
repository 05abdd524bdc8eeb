"""The process that runs one notebook: `python -m infra_lab.course.grading.worker JOB.json`.

It limits itself first, so that the kernel inherits the limits.
"""

import json
import os
import resource
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

MAX_FILE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Job:
    """One notebook to run. Everything about it lies in `folder`, its working directory in `folder/work`."""

    folder: str
    parameters: dict[str, Any]
    cell_timeout_s: int
    memory_bytes: int
    max_output_bytes: int

    @property
    def notebook(self) -> Path:
        """The assembled notebook."""
        return Path(self.folder) / "in.ipynb"

    @property
    def work(self) -> Path:
        """Where its cells run."""
        return Path(self.folder) / "work"

    @property
    def transcript(self) -> Path:
        """What its cells did."""
        return Path(self.folder) / "transcript.jsonl"

    def write(self) -> Path:
        """Save the job for the worker."""
        path = Path(self.folder) / "job.json"
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")
        return path

    @classmethod
    def read(cls, path: Path) -> Self:
        """Load a saved job."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))


def limit_this_process(memory_bytes: int) -> None:
    """Bound data memory and file size; in a process over the limit an allocation fails with MemoryError."""
    for kind, wanted in ((resource.RLIMIT_DATA, memory_bytes), (resource.RLIMIT_FSIZE, MAX_FILE_BYTES)):
        hard = resource.getrlimit(kind)[1]
        bound = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(kind, (bound, bound))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash leaves no core file


def run_job(job: Job) -> None:
    """Run the notebook with papermill; what it did is in the transcript."""
    import papermill
    from papermill.engines import papermill_engines

    from infra_lab.course.grading.engine import GradingEngine

    papermill_engines.register(GradingEngine.name, GradingEngine)
    papermill.execute_notebook(
        job.notebook, None, job.parameters, engine_name=GradingEngine.name, kernel_name="python3",
        progress_bar=False, cwd=job.work, start_timeout=120, autosave_cell_every=0,
        transcript=job.transcript, max_output_bytes=job.max_output_bytes, execution_timeout=job.cell_timeout_s,
        socket_folder=Path(job.folder),
    )  # fmt: skip


def main() -> None:
    """Run the job that the command line names."""
    job = Job.read(Path(sys.argv[1]))
    limit_this_process(job.memory_bytes)
    os.chdir(job.work)
    run_job(job)


if __name__ == "__main__":
    main()
