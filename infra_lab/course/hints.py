"""`hint("allocator")` and `reveal("allocator")`: help that is there, a step at a time."""

from pathlib import Path

from infra_lab.course.catalog import LessonFiles, lesson_files, section
from infra_lab.course.notebooks import Cell, course_metadata, exercise_name, read_notebook, role
from infra_lab.course.output import NEUTRAL, card, escape, show
from infra_lab.course.progress import Progress
from infra_lab.course.session import current_section
from infra_lab.errors import ConfigError

DEFAULT_REVEAL_AFTER = 3


def hint(exercise: str) -> None:
    """Show the hints so far and one more. Raises ConfigError for an exercise that this lesson does not have."""
    hints = [text for cell in _answers(_files().exercise, exercise) for text in course_metadata(cell).get("hints", [])]
    with Progress().edit(current_section()) as data:
        record = data["exercises"].setdefault(exercise, {})
        record["hints"] = shown = min(record.get("hints", 0) + 1, len(hints))
    lines = [f"{number}. {text}" for number, text in enumerate(hints[:shown], 1)]
    left = len(hints) - shown
    lines.append(
        f"({left} more: run this cell again)" if left else f'(no more hints; reveal("{exercise}") shows a solution)'
    )
    _show(f"Hint {shown} of {len(hints)}: {exercise}", "\n".join(lines))


def reveal(exercise: str) -> None:
    """Show a solution once it is solved or enough tries have failed; until then say how many are left.

    Raises ConfigError for an exercise that this lesson does not have.
    """
    files = _files()
    needed = max(
        int(course_metadata(cell).get("reveal_after", DEFAULT_REVEAL_AFTER))
        for cell in _answers(files.exercise, exercise)
    )
    with Progress().edit(current_section()) as data:
        record = data["exercises"].setdefault(exercise, {})
        left = needed - record.get("failed", 0)
        solved = record.get("points") is not None and record.get("best", 0.0) >= record["points"]
        if left <= 0 or solved:
            record["revealed"] = True
    if left > 0 and not solved:
        tries = "try" if left == 1 else "tries"
        _show(f"{exercise}: not yet", f"The solution opens after {left} more {tries} that the check finds wrong.")
        return
    from infra_lab.course.delimiters import without_delimiters

    code = "\n\n".join(without_delimiters(cell["source"]) for cell in _answers(files.solution, exercise))
    show(
        {
            "text/plain": f"One solution of {exercise}:\n\n{code}",
            "text/html": card(
                f"One solution of {escape(exercise)}",
                f"<pre>{escape(code).replace('<br>', chr(10))}</pre>",
                accent=NEUTRAL,
            ),
        }
    )


def _files() -> LessonFiles:
    number = current_section()
    if not number:
        raise ConfigError('which lesson is this? Run its first cell, lesson("..."), and then this one again')
    return lesson_files(section(number))


def _answers(path: Path, exercise: str) -> list[Cell]:
    cells = read_notebook(path)["cells"]
    answers = [cell for cell in cells if role(cell) == "answer"]
    found = [cell for cell in answers if exercise_name(cell) == exercise]
    if not found:
        known = ", ".join(dict.fromkeys(exercise_name(cell) for cell in answers)) or "none"
        raise ConfigError(f"{path.name} has no exercise {exercise!r}; it has {known}")
    return found


def _show(title: str, text: str) -> None:
    show({"text/plain": f"{title}\n{text}", "text/html": card(escape(title), escape(text), accent=NEUTRAL)})
