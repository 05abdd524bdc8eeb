"""Claims: a verdict follows from what was computed, and the ledger and the lessons agree."""

import shutil
from pathlib import Path

import nbformat
import numpy as np
import pytest

from infra_lab.course import claim
from infra_lab.course import claims as claims_module
from infra_lab.course.catalog import lesson_files, section
from infra_lab.course.claims_report import claim_states, unlisted_verdicts
from infra_lab.course.ledger import VERDICTS, claims_of, read_ledger
from infra_lab.course.output import CLAIM_MIME
from infra_lab.course.toc import SECTIONS
from infra_lab.errors import ConfigError


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    bundles: list[dict[str, object]] = []
    monkeypatch.setattr(claims_module, "show", bundles.append)
    return bundles


@pytest.mark.parametrize(
    ("holds", "verdict"),
    [
        (True, "holds"), (False, "wrong"), (np.bool_(True), "holds"), ({"a": True, "b": True}, "holds"),
        ({"a": True, "b": False}, "holds-under-conditions"), ({"a": False}, "wrong"),
    ],
)  # fmt: skip
def test_the_verdict_follows_from_the_cases(holds: object, verdict: str, shown: list[dict[str, object]]) -> None:
    claim("4.2-03", holds, because="of 3 < 4")
    record = shown[0][CLAIM_MIME]
    assert isinstance(record, dict)
    assert (record["id"], record["verdict"]) == ("4.2-03", verdict)
    assert "of 3 &lt; 4" in str(shown[0]["text/html"])
    assert "because: of 3 < 4" in str(shown[0]["text/plain"])


def test_unverifiable_is_said_and_not_computed(shown: list[dict[str, object]]) -> None:
    claim("1.1-05", unverifiable=True, because="no figure was published")
    assert shown[0][CLAIM_MIME] == {"id": "1.1-05", "verdict": "unverifiable", "cases": {}}


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("4.2-99", True), {}, "no claim '4.2-99' in the ledger; section 4.2 has 4.2-01, 4.2-02"),
        (("4.2-03", 0.4), {}, "is 0.4; expected a comparison's True or False"),
        (("4.2-03", {"a": 1}), {}, "a is 1; expected"),
        (("4.2-03", {}), {}, "no case was given"),
        (("4.2-03",), {}, "give what was computed"),
        (("4.2-03", True), {"unverifiable": True}, "give what was computed"),
        (("4.2-03", True), {"because": " "}, "because is empty"),
    ],
)
def test_a_claim_that_proves_nothing_is_refused(
    arguments: tuple[object, ...], options: dict[str, object], message: str, shown: list[dict[str, object]]
) -> None:
    with pytest.raises(ConfigError, match=message):
        claim(*arguments, **{"because": "x", **options})
    assert shown == []


def test_the_ledger_is_sound() -> None:
    rows = read_ledger()
    assert len(rows) == 220
    assert {row.expected_verdict for row in rows} == set(VERDICTS)
    assert {row.section for row in rows} <= {entry.claims_section for entry in SECTIONS}
    assert {row.settled_by for row in rows} <= {entry.path for entry in SECTIONS} | {""}
    assert [row.id for row in claims_of(section("4.2"))] == [f"4.2-0{n}" for n in range(1, 8)]
    assert [row.id for row in claims_of(section("3.4a"))] == [f"3.4-{n:02}" for n in range(1, 11)]
    assert [row.id for row in claims_of(section("3.4b"))] == ["3.4-11"]
    assert [row.id for row in claims_of(section("3.4c"))] == ["3.4-12"]
    assert [row.id for row in claims_of(section("6.3a"))] == [f"6.3-0{n}" for n in (1, 2, 3, 4, 5, 6, 9)]


@pytest.fixture(scope="module")
def course(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A labs folder whose 4.2 holds every verdict that the ledger expects, as stored outputs."""
    labs = tmp_path_factory.mktemp("claims") / "labs"
    path = lesson_files(section("4.2"), labs).lesson
    path.parent.mkdir(parents=True)
    cells = []
    for row in claims_of(section("4.2")):
        data = {"text/plain": "", CLAIM_MIME: {"id": row.id, "verdict": row.expected_verdict}}
        cells.append(nbformat.v4.new_code_cell("", outputs=[nbformat.v4.new_output("display_data", data)]))
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return labs


def test_settled_open_missing_and_differing_claims(course: Path, tmp_path: Path) -> None:
    assert {state.state for state in claim_states("4.2", labs=course)} == {"settled"}
    assert {state.state for state in claim_states("1.1", labs=course)} == {"open"}
    assert unlisted_verdicts(course) == []
    labs = tmp_path / "labs"
    shutil.copytree(course, labs)
    path = lesson_files(section("4.2"), labs).lesson
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[0].outputs[0].data[CLAIM_MIME]["verdict"] = "wrong"
    notebook.cells[1].outputs = []
    notebook.cells[2].outputs[0].data[CLAIM_MIME]["id"] = "1.1-01"
    nbformat.write(notebook, path)
    states = {state.claim.id: state for state in claim_states("4.2", labs=labs)}
    assert [states[f"4.2-0{n}"].state for n in range(1, 5)] == ["differs", "missing", "missing", "settled"]
    assert "computes 'wrong' and the ledger expects 'holds'" in states["4.2-01"].problem
    assert "no stored verdict" in states["4.2-02"].problem
    assert "settles 1.1-01" in unlisted_verdicts(labs)[0]
    path.unlink()
    assert {state.state for state in claim_states("4.2", labs=labs)} == {"missing"}
    with pytest.raises(ConfigError, match="no claims of section '9'"):
        claim_states("9", labs=labs)
