"""The ledger of the chapter's claims (`datasets/claims.csv`): what is said, what we expect to find, who settles it."""

import csv
from functools import cache
from typing import Any, Literal, NamedTuple, get_args

from infra_lab.course.toc import Section
from infra_lab.data import data_path
from infra_lab.errors import ConfigError

Verdict = Literal["holds", "holds-under-conditions", "wrong", "unverifiable"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)


class LedgerClaim(NamedTuple):
    """One row of the ledger."""

    id: str
    section: str
    claim: str
    kind: str
    """How it can be settled: derive, measure, simulate or cite."""
    how_to_check: str
    expected_verdict: Verdict
    reason: str
    settled_by: str
    """The lesson that computes its verdict, as a path from the project's root; empty while none does."""


@cache
def read_ledger() -> tuple[LedgerClaim, ...]:
    """Read the ledger. Raises ConfigError for a row with an unknown verdict or an id that comes twice."""
    with data_path("claims.csv").open(encoding="utf-8", newline="") as file:
        lines: list[dict[str, Any]] = list(csv.DictReader(file))
    rows = tuple(LedgerClaim(**line) for line in lines)
    seen: set[str] = set()
    for row in rows:
        if row.expected_verdict not in VERDICTS:
            raise ConfigError(
                f"claim {row.id}: verdict {row.expected_verdict!r}; expected one of {', '.join(VERDICTS)}"
            )
        if row.id in seen:
            raise ConfigError(f"claim {row.id} stands in the ledger twice; give one of them another number")
        seen.add(row.id)
    return rows


def ledger_claim(claim_id: str) -> LedgerClaim:
    """Return one claim. Raises ConfigError for an unknown id, naming those of its section."""
    rows = read_ledger()
    for row in rows:
        if row.id == claim_id:
            return row
    section = claim_id.split("-")[0]
    near = ", ".join(row.id for row in rows if row.section == section) or "none"
    raise ConfigError(f"there is no claim {claim_id!r} in the ledger; section {section} has {near}")


def claims_of(entry: Section) -> list[LedgerClaim]:
    """List what a lesson must settle: the rows that name it, and its section's rows that name no lesson.

    Lessons that share a section of the chapter (3.4a, 3.4b) have only the rows that name them.
    """
    shared = entry.number != entry.claims_section
    return [
        row
        for row in read_ledger()
        if row.settled_by == entry.path or (row.section == entry.number and not row.settled_by and not shared)
    ]
