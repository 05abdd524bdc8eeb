"""The tables that the commands print."""

from rich.markup import escape
from rich.table import Table

from infra_lab.course.claims_report import ClaimState
from infra_lab.course.grading.score import GradeRow


def marks_table(rows: list[GradeRow]) -> Table:
    """One line a submission."""
    table = Table()
    for name in ("student", "section", "status"):
        table.add_column(name)
    for name in ("earned", "of", "%"):
        table.add_column(name, justify="right")
    table.add_column("message", overflow="fold")
    for row in rows:
        colour = {"ok": "green", "missing-cells-restored": "yellow", "errors": "yellow"}.get(row.status, "red")
        marks = (f"{row.earned:g}", f"{row.points:g}", f"{row.percent:g}")
        table.add_row(escape(row.student), row.section, f"[{colour}]{row.status}[/]", *marks, escape(row.message))
    return table


def claims_table(states: list[ClaimState]) -> Table:
    """One line a section: how many claims it has, and where they stand."""
    table = Table()
    table.add_column("section")
    names = ("settled", "open", "missing", "differs")
    for name in ("claims", *names):
        table.add_column(name, justify="right")
    for section in dict.fromkeys(state.claim.section for state in states):
        own = [state.state for state in states if state.claim.section == section]
        table.add_row(section, str(len(own)), *(str(own.count(name)) if name in own else "" for name in names))
    counts = [sum(state.state == name for state in states) for name in names]
    table.add_row("[bold]all[/]", *(f"[bold]{count}[/]" for count in (len(states), *counts)))
    return table


def section_table(states: list[ClaimState]) -> Table:
    """One line a claim: what the chapter says, and the verdict."""
    table = Table()
    for name in ("claim", "what the chapter says", "verdict"):
        table.add_column(name, overflow="fold")
    for state in states:
        table.add_row(state.claim.id, escape(state.claim.claim), state.verdict or state.state)
    return table
