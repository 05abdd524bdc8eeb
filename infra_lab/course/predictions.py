"""`predict(...)`: the learner commits a guess before anything is measured."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from infra_lab.course.progress import Progress
from infra_lab.course.session import current_section
from infra_lab.errors import ConfigError

if TYPE_CHECKING:
    from infra_lab.course.prediction_widget import PredictionWidget

Guess = float | str


class Prediction:
    """One guess: a number on a scale, or one of several choices. Show it in a cell to get its widget.

    `value` is None until it is committed, so that a notebook runs through without anyone answering; it is read back
    from the progress file when the lesson is opened again.
    """

    def __init__(
        self, name: str, question: str, *, choices: tuple[str, ...], low: float, high: float, step: float, unit: str
    ) -> None:
        self.name, self.question, self.choices, self.unit = name, question, choices, unit
        self.low, self.high, self.step = low, high, step
        self._section = current_section()
        self._widget: PredictionWidget | None = None
        stored = Progress().section(self._section)["predictions"].get(name, {})
        self.value: Guess | None = stored.get("value") if self._fits(stored.get("value")) else None
        self.first: Guess | None = stored.get("first", self.value)
        """The guess before any change of mind."""

    def _fits(self, value: object) -> bool:
        if self.choices:
            return value in self.choices
        return isinstance(value, int | float) and not isinstance(value, bool) and self.low <= value <= self.high

    def commit(self, value: Guess) -> None:
        """Lock the guess and save it. Raises ConfigError for a value outside the scale or the choices."""
        if not self._fits(value):
            raise ConfigError(f"{value!r} is no answer to {self.question!r}; expected {self.scale}")
        self.value = value
        with Progress().edit(self._section) as section:
            record = section["predictions"].setdefault(self.name, {})
            self.first = record.setdefault("first", value)
            record["value"] = value
        if self._widget is not None:
            self._widget.refresh()

    @property
    def scale(self) -> str:
        """What can be answered, in words."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        return f"{self.low:g} to {self.high:g}{self._unit}"

    @property
    def _unit(self) -> str:
        return f" {self.unit}" if self.unit and self.unit != "%" else self.unit

    def describe(self, value: Guess | None) -> str:
        """Write a value with its unit."""
        if value is None:
            return "not committed yet"
        return value if isinstance(value, str) else f"{value:g}{self._unit}"

    def __str__(self) -> str:
        return f"{self.question} Your guess: {self.describe(self.value)} ({self.scale})."

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, Any]:
        from infra_lab.course.prediction_widget import widget_for

        bundle: dict[str, Any] = {"text/plain": str(self)}
        if self._widget is None:
            self._widget = widget_for(self)
        if self._widget is not None:
            bundle.update(self._widget.mime_bundle())
        return bundle

    @property
    def widget(self) -> "PredictionWidget":
        """The controls, made at the first use. Raises MissingExtraError where ipywidgets is not installed."""
        from infra_lab.course.prediction_widget import PredictionWidget

        self._widget = self._widget or PredictionWidget(self)
        return self._widget


def predict(
    name: str,
    question: str,
    *,
    choices: Sequence[str] = (),
    low: float = 0,
    high: float = 100,
    step: float = 1,
    unit: str = "",
) -> Prediction:
    """Ask for a guess: on a scale from `low` to `high` in `step`s of a `unit`, or as one of several `choices`.

    The guess is kept in the progress file under the current lesson and this name. Raises ConfigError for an empty scale.
    """
    if not choices and not (low < high and 0 < step <= high - low):
        raise ConfigError(f"predict({name!r}): the scale from {low} to {high} in steps of {step} is empty")
    if choices and len(set(choices)) < 2:
        raise ConfigError(f"predict({name!r}): the choices {list(choices)} are not at least two different ones")
    return Prediction(name, question, choices=tuple(choices), low=low, high=high, step=step, unit=unit)
