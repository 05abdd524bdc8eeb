"""What a check's records are worth when somebody else wrote some of them."""

import pytest

from infra_lab.course.grading.assemble import Assembled, CheckCell
from infra_lab.course.grading.score import GradeRow, score
from infra_lab.course.grading.supervise import Outcome
from infra_lab.course.grading.transcript import CellRun

CHECK = CheckCell("check-blocks", "blocks", 3.0)
FULL = {"exercise": "blocks", "points": 3, "earned": 3}
HALF = {"exercise": "blocks", "points": 3, "earned": 1.5}


def ran(*grades: dict[str, object], cell: str = CHECK.cell_id, dead: str = "") -> CellRun:
    return CellRun(cell, 1, 0.1, list(grades), "", timed_out=False, flooded=False, dead=dead)


@pytest.mark.parametrize(
    ("cells", "earned"),
    [
        ([ran(FULL)], 3.0),
        ([ran(HALF)], 1.5),
        ([], 0.0),
        ([ran()], 0.0),
        ([ran(FULL, HALF)], 1.5),
        ([ran(HALF), ran(FULL)], 1.5),
        ([ran(FULL), ran()], 0.0),
        ([ran(FULL, dead="crashed")], 0.0),
        ([ran(FULL, cell="answer-blocks"), ran(HALF)], 1.5),
        ([ran({**FULL, "exercise": "slots"})], 0.0),
        ([ran({**FULL, "earned": 4})], 0.0),
        ([ran({**FULL, "earned": float("nan")})], 0.0),
    ],
)
def test_the_lowest_record_of_the_check_itself_counts(cells: list[CellRun], earned: float) -> None:
    assembled = Assembled({"cells": []}, (CHECK,), ())
    row = score("alice", "x.ipynb", "4.2", assembled, Outcome(cells, 1.0, out_of_time=False, failure=""))
    assert (row.scores, row.points) == ({"blocks": earned}, 3.0)


def test_a_row_can_be_written_whatever_a_file_is_called() -> None:
    row = GradeRow("\udcd5\udcc5", "张三", "4.2", "ok", message="half a character: \ud83d")
    assert (row.student, row.notebook, row.message) == (r"\udcd5\udcc5", "张三", r"half a character: \ud83d")
