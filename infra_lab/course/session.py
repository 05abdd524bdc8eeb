"""Which lesson this kernel is in."""

import sys

from infra_lab.course.catalog import section

_current = ""


def lesson(number: str) -> None:
    """Begin a lesson: remember its section, and print its title and this machine in two lines.

    Raises ConfigError for a section that the course does not have.
    """
    from infra_lab.hardware.machine import describe_machine

    global _current
    entry = section(number)
    _current = entry.number
    sys.stdout.write(f"{entry.number} {entry.title} · {entry.chinese}\n{describe_machine().summary}\n")


def current_section() -> str:
    """Return the section that `lesson` was last called with, or "" before that."""
    return _current
