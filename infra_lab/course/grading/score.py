"""From what a notebook's cells did to its row in the table."""

from dataclasses import dataclass, field
from typing import Any, Literal

from infra_lab.course.grading.assemble import Assembled, CheckCell
from infra_lab.course.grading.supervise import Outcome
from infra_lab.course.grading.transcript import CellRun

Status = Literal[
    "ok", "missing-cells-restored", "errors", "memory", "timeout", "output-flood", "crashed", "failed",
    "unreadable", "not-graded",
]  # fmt: skip
"""The worst that happened: from "ok" on, each outranks those before it. "failed" is the grader's own failure."""
_MEMORY = ("MemoryError", "can't allocate memory", "Unable to allocate", "Cannot allocate memory")


@dataclass(frozen=True, slots=True)
class GradeRow:
    """One submission's marks."""

    student: str
    notebook: str
    section: str
    status: Status
    points: float = 0.0
    """What could be earned."""
    scores: dict[str, float] = field(default_factory=dict)
    """Points earned by exercise."""
    seconds: float = 0.0
    message: str = ""

    def __post_init__(self) -> None:
        for name in ("student", "notebook", "message"):
            object.__setattr__(self, name, _printable(getattr(self, name)))

    @property
    def earned(self) -> float:
        """Points earned in all."""
        return round(sum(self.scores.values()), 6)

    @property
    def percent(self) -> float:
        """Share of the points."""
        return round(100 * self.earned / self.points, 1) if self.points else 0.0


def _printable(text: str) -> str:
    """Escape what UTF-8 has no bytes for: a file named in another encoding must not cost everybody the table."""
    return text.encode("utf-8", "backslashreplace").decode()


def score(student: str, notebook: str, section: str, assembled: Assembled, outcome: Outcome) -> GradeRow:
    """Add up what the check cells gave; a check that did not run gives 0."""
    status, message = _status(assembled, outcome)
    return GradeRow(
        student,
        notebook,
        section,
        status,
        points=sum(check.points for check in assembled.checks),
        scores={check.exercise: _earned(check, outcome.cells) for check in assembled.checks},
        seconds=round(outcome.seconds, 1),
        message=message,
    )


def _earned(check: CheckCell, cells: list[CellRun]) -> float:
    """Return a check's points. It runs once and writes one record, at its end: of several, the lowest counts."""
    runs = [run for run in cells if run.cell_id == check.cell_id]
    return min((_points_of(run, check) for run in runs), default=0.0)


def _points_of(run: CellRun, check: CheckCell) -> float:
    """A check whose kernel died has not come to its end: a record in it is somebody else's."""
    records = run.grades if not run.dead else []
    return min((_points_in(record, check) for record in records), default=0.0)


def _points_in(record: Any, check: CheckCell) -> float:
    if not isinstance(record, dict) or record.get("exercise") != check.exercise:
        return 0.0
    earned, of = record.get("earned"), record.get("points")
    if not isinstance(earned, int | float) or not isinstance(of, int | float) or not 0 <= earned <= of or of <= 0:
        return 0.0
    return round(check.points * earned / of, 6)


def _status(assembled: Assembled, outcome: Outcome) -> tuple[Status, str]:
    places = {cell["id"]: place for place, cell in enumerate(assembled.notebook["cells"], 1)}
    cells = [run._replace(number=places.get(run.cell_id, run.number)) for run in outcome.cells]
    for run in cells:
        if run.dead == "crashed":
            return "crashed", f"the kernel died in cell {run.number}; nothing ran after it"
    if outcome.failure:
        return "failed", outcome.failure
    if outcome.out_of_time:
        after = f"cell {cells[-1].number}" if cells else "its start"
        return "timeout", f"the notebook as a whole took too long; stopped after {after}"
    for run in cells:
        if run.flooded:
            return "output-flood", f"cell {run.number} wrote more output than it may; it was interrupted"
    for run in cells:
        if run.timed_out:
            ending = ", did not stop when interrupted, and nothing ran after it" if run.dead else ""
            return "timeout", f"cell {run.number} took too long{ending}"
    for run in cells:
        texts = [run.error] + [str(part.get("message", "")) for part in _parts(run)] + [_ended_by(run)]
        if any(sign in text for text in texts for sign in _MEMORY):
            return "memory", f"cell {run.number} asked for more memory than it may have"
    for run in cells:
        if run.error:
            return "errors", f"cell {run.number}: {run.error}"
    if assembled.restored:
        return "missing-cells-restored", "put back: " + ", ".join(assembled.restored)
    return "ok", ""


def _parts(run: CellRun) -> list[dict[str, Any]]:
    lists = [record.get("parts") for record in run.grades if isinstance(record, dict)]
    return [part for parts in lists if isinstance(parts, list) for part in parts if isinstance(part, dict)]


def _ended_by(run: CellRun) -> str:
    return " ".join(str(record.get("ended_by") or "") for record in run.grades if isinstance(record, dict))
