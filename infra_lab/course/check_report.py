"""What a check shows at its end: its points, a line for each part, and the record that the grader reads."""

from typing import TYPE_CHECKING, Any

from infra_lab.course.output import BAD, GOOD, GRADE_MIME, MIXED, card, escape
from infra_lab.course.student_errors import describe_error

if TYPE_CHECKING:
    from infra_lab.course.checks import Check


def check_bundle(check: "Check") -> dict[str, Any]:
    """Return a finished check as a MIME bundle: text, HTML and the grade."""
    title = f"{check.exercise}: {check.earned:.3g} of {check.points:g} points"
    lines = [(part.passed, part.what, part.message) for part in check.parts]
    if check.ended_by is not None:
        lost = check.num_parts - len(check.parts)
        said = f"ended early, {lost} part{'s' * (lost != 1)} not reached"
        lines.append((False, said, describe_error(check.ended_by)))
    plain = [title] + [f"  {'✓' if ok else '✗'} {what}{f': {said}' if said else ''}" for ok, what, said in lines]
    accent = GOOD if check.earned == check.points else MIXED if check.earned else BAD
    return {
        "text/plain": "\n".join(plain),
        "text/html": card(escape(title), "".join(_row(*line) for line in lines), accent=accent),
        GRADE_MIME: check.grade(),
    }


def _row(passed: bool, what: str, message: str) -> str:
    more = f'<div style="margin-left:1.4em;font-family:monospace">{escape(message)}</div>' if message else ""
    return f'<div style="color:{GOOD if passed else BAD}">{"✓" if passed else "✗"} {escape(what)}{more}</div>'
