"""Which claims are settled, by the verdicts that stand in the lessons' stored outputs."""

from pathlib import Path
from typing import Literal, NamedTuple

from infra_lab.course.catalog import written_lessons
from infra_lab.course.folders import labs_path
from infra_lab.course.ledger import LedgerClaim, read_ledger
from infra_lab.course.notebooks import Notebook, code_cells, read_notebook
from infra_lab.course.output import CLAIM_MIME
from infra_lab.errors import ConfigError

State = Literal["open", "settled", "differs", "missing"]


class ClaimState(NamedTuple):
    """Where one claim stands."""

    claim: LedgerClaim
    state: State
    """open: no lesson yet. missing: its lesson does not show it. differs: another verdict than the ledger's."""
    verdict: str
    """What the lesson computed; empty if nothing."""
    problem: str
    """What is wrong and what to do; empty for open and settled."""


def verdicts_in(notebook: Notebook) -> dict[str, str]:
    """Return the verdicts stored in a notebook's outputs, by claim id; of several for one claim the last."""
    outputs = [output for cell in code_cells(notebook) for output in cell["outputs"]]
    shown = [output["data"][CLAIM_MIME] for output in outputs if CLAIM_MIME in output.get("data", {})]
    return {str(record["id"]): str(record["verdict"]) for record in shown}


def claim_states(section: str | None = None, *, labs: Path | None = None) -> list[ClaimState]:
    """Look up every claim of the ledger, or of one section. Raises ConfigError for a section without claims."""
    rows = [row for row in read_ledger() if section is None or row.section == section]
    if not rows:
        known = ", ".join(dict.fromkeys(row.section for row in read_ledger()))
        raise ConfigError(f"the ledger has no claims of section {section!r}; it has {known}")
    root = labs or labs_path()
    lessons = {row.settled_by: _verdicts(root, row.settled_by) for row in rows if row.settled_by}
    return [_state(row, lessons) for row in rows]


def unlisted_verdicts(labs: Path | None = None) -> list[str]:
    """Say which lessons settle a claim that the ledger credits to no lesson, or to another one."""
    root = labs or labs_path()
    rows = {row.id: row for row in read_ledger()}
    problems = []
    for _, path in written_lessons(root):
        name = f"labs/{path.relative_to(root).as_posix()}"
        problems += [
            f"{name} settles {claim_id}, and the ledger's settled_by says {rows[claim_id].settled_by or 'nobody'!r}"
            for claim_id in verdicts_in(read_notebook(path))
            if claim_id in rows and rows[claim_id].settled_by != name
        ]
    return problems


def _verdicts(labs: Path, settled_by: str) -> dict[str, str] | str:
    """Return a lesson's verdicts, or why there are none."""
    try:
        return verdicts_in(read_notebook(labs / settled_by.removeprefix("labs/")))
    except ConfigError as error:
        return str(error)


def _state(row: LedgerClaim, lessons: dict[str, dict[str, str] | str]) -> ClaimState:
    if not row.settled_by:
        return ClaimState(row, "open", "", "")
    found = lessons[row.settled_by]
    if isinstance(found, str):
        return ClaimState(row, "missing", "", f"{row.id}: {found}")
    verdict = found.get(row.id)
    if verdict is None:
        return ClaimState(
            row, "missing", "", f"{row.id}: no stored verdict in {row.settled_by}; add it and run the lesson"
        )
    if verdict != row.expected_verdict:
        said = f"{row.id}: {row.settled_by} computes {verdict!r} and the ledger expects {row.expected_verdict!r}"
        return ClaimState(row, "differs", verdict, f"{said}; one of the two is wrong")
    return ClaimState(row, "settled", verdict, "")
