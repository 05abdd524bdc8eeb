"""`with check("allocator", points=3, parts=4) as c:` — visible checks that record, go on, and give points.

Each call of `c.equal`, `c.close`, `c.true` or `c.raises` is a part; the parts share the points equally. A part that
fails is written down and the next one runs. An exception ends the block and loses the parts not reached; it never
leaves the block, except for the interrupt of the user or of the grader's time limit.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Self

from infra_lab.course.check_report import check_bundle
from infra_lab.course.compare import first_difference, first_far_value
from infra_lab.course.output import show
from infra_lab.course.progress import Progress
from infra_lab.course.session import current_section
from infra_lab.course.student_errors import describe_error, is_untouched_stub
from infra_lab.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Part:
    """One line of a check."""

    what: str
    passed: bool
    message: str = ""
    """What was wrong; empty if it passed."""


class Check:
    """The parts of one exercise's check; made by `check`, used as a context manager.

    `parts`, the number of parts declared, makes an early end lose the right share. Each method returns whether its part
    passed. A callable given for `got` or `condition` is called inside the part, so that its exception fails only that.
    """

    def __init__(self, exercise: str, *, points: float, parts: int | None = None) -> None:
        if not points > 0:
            raise ConfigError(f"check({exercise!r}): points is {points}; it must be above 0")
        if parts is not None and parts < 1:
            raise ConfigError(f"check({exercise!r}): parts is {parts}; it must be at least 1, or left out")
        self.exercise, self.points, self.declared = exercise, points, parts
        self.parts: list[Part] = []
        self.ended_by: BaseException | None = None
        self._untouched = False

    @property
    def num_parts(self) -> int:
        """How many parts share the points."""
        reached = len(self.parts) + (self.ended_by is not None)
        return max(self.declared or 0, reached, 1)

    @property
    def earned(self) -> float:
        """Points earned so far."""
        passed = sum(part.passed for part in self.parts)
        return self.points if passed == self.num_parts else self.points * passed / self.num_parts

    def equal(self, got: object, expected: object, what: str) -> bool:
        """Pass if both are equal; else name the first index, key or character that differs, with both values."""
        return self._part(what, lambda: first_difference(_call(got), expected))

    def close(self, got: object, expected: object, what: str, *, atol: float = 1e-6, rtol: float = 1e-5) -> bool:
        """Pass if all numbers are within `atol + rtol * |expected|`; else name the first index that is not."""
        return self._part(what, lambda: first_far_value(_call(got), expected, atol=atol, rtol=rtol))

    def true(self, condition: object, what: str) -> bool:
        """Pass if the condition holds."""
        return self._part(what, lambda: None if bool(_call(condition)) else "this does not hold")

    def raises(
        self, expected: type[Exception], function: Callable[[], object], what: str, *, match: str | None = None
    ) -> bool:
        """Pass if calling the function raises that exception, with `match` in its message if given."""

        def problem() -> str | None:
            try:
                result = function()
            except expected as error:
                if is_untouched_stub(error) and expected is not NotImplementedError:
                    raise  # RuntimeError is a base of the stub's NotImplementedError
                if match is not None and match not in str(error):
                    return f"{expected.__name__} says {str(error)!r}; expected {match!r} in it"
                return None
            return f"no {expected.__name__} was raised; the result was {result!r:.80}"

        return self._part(what, problem)

    def _part(self, what: str, problem: Callable[[], str | None]) -> bool:
        try:
            message = problem()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever the student's code raises
            self._untouched |= is_untouched_stub(error)
            message = describe_error(error)
        self.parts.append(Part(what, message is None, message or ""))
        return message is None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self.ended_by = error
        self._untouched |= is_untouched_stub(error)
        self._remember()
        show(check_bundle(self))
        return error is None or not isinstance(error, KeyboardInterrupt)

    def _remember(self) -> None:
        """Count the try. Running the untouched stub is not a failed try: it brings the solution no nearer."""
        with Progress().edit(current_section()) as section:
            record = section["exercises"].setdefault(self.exercise, {})
            record["tries"] = record.get("tries", 0) + 1
            untouched = self._untouched and not any(part.passed for part in self.parts)
            if self.earned < self.points and not untouched:
                record["failed"] = record.get("failed", 0) + 1
            record["points"] = self.points
            record["best"] = max(record.get("best", 0.0), self.earned)

    def grade(self) -> dict[str, Any]:
        """Return the record that the grader reads."""
        return {
            "exercise": self.exercise,
            "points": self.points,
            "earned": round(self.earned, 6),
            "parts": [asdict(part) for part in self.parts],
            "declared_parts": self.declared,
            "ended_by": describe_error(self.ended_by) if self.ended_by is not None else None,
        }


def check(exercise: str, *, points: float, parts: int | None = None) -> Check:
    """Begin the check of an exercise (see `Check`). Raises ConfigError for impossible points or parts."""
    return Check(exercise, points=points, parts=parts)


def _call(value: object) -> object:
    return value() if callable(value) and not isinstance(value, type) else value
