"""`knob`: a field of a params dataclass that says how it can be turned."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from infra_lab.errors import ConfigError

_KEY = "infra_lab.knob"


@dataclass(frozen=True, slots=True)
class Knob:
    """One control, as its field describes it. `choices` or a range, or neither for a switch."""

    name: str
    default: Any
    label: str
    unit: str
    help: str
    low: float | None
    high: float | None
    step: float | None
    log: bool
    choices: tuple[Any, ...]

    def check(self, value: Any) -> Any:
        """Return the value as the field's type holds it.

        Raises ConfigError if it is of another type, outside the range, or not one of the choices.
        """
        if self.choices:
            if value not in self.choices or isinstance(value, bool):
                raise ConfigError(f"{self.name} is {value!r}; choose one of {', '.join(map(repr, self.choices))}")
            return self.choices[self.choices.index(value)]
        if isinstance(self.default, bool):
            if not isinstance(value, bool):
                raise ConfigError(f"{self.name} is {value!r}; it must be True or False")
            return value
        is_number = isinstance(value, int if isinstance(self.default, int) else (int, float))
        if not is_number or isinstance(value, bool) or not math.isfinite(value):
            raise ConfigError(f"{self.name} is {value!r}; it must be a finite {type(self.default).__name__}")
        if self.low is None or self.high is None or not self.low <= value <= self.high:
            raise ConfigError(f"{self.name} is {value!r}; it must be from {self.low} to {self.high}")
        return type(self.default)(value)


def knob(
    default: Any,
    *,
    low: float | None = None,
    high: float | None = None,
    step: float | None = None,
    log: bool = False,
    choices: Sequence[Any] = (),
    label: str = "",
    unit: str = "",
    help: str = "",
) -> Any:
    """Make a dataclass field that a panel turns into a control.

    The default's type decides: an int or a float needs `low` and `high` (both included), or `choices`; a bool is a switch;
    a string needs `choices`. `log` spaces a float's slider by powers of ten. `help` becomes the tooltip. A definition that
    contradicts itself is found by `knobs_of`, which knows the field's name.
    """
    settings = {
        "low": low,
        "high": high,
        "step": step,
        "log": log,
        "choices": tuple(choices),
        "label": label,
        "unit": unit,
        "help": help,
    }
    return dataclasses.field(default=default, metadata={_KEY: settings})


def knobs_of(params_type: type) -> list[Knob]:
    """Return the knobs of a params dataclass in the order of its fields; fields that are no knobs keep their defaults.

    Raises ConfigError naming the field whose definition contradicts itself, or if there is nothing to turn.
    """
    if not dataclasses.is_dataclass(params_type):
        raise ConfigError(f"{params_type!r} is no dataclass; write @dataclass(frozen=True) above its class")
    knobs = []
    for field in dataclasses.fields(params_type):
        settings = field.metadata.get(_KEY)
        if settings is not None:
            label = settings["label"] or field.name.replace("_", " ").capitalize()
            knobs.append(_checked(Knob(**{**settings, "name": field.name, "default": field.default, "label": label})))
    if not knobs:
        raise ConfigError(f"{params_type.__name__} has no field made by knob(...), so there is nothing to turn")
    return knobs


def _checked(knob: Knob) -> Knob:
    """Raises ConfigError for a definition that no control can be made of."""
    name, default = knob.name, knob.default
    if not isinstance(default, (bool, int, float, str)):
        raise ConfigError(f"{name} has the default {default!r}; a knob turns a bool, an int, a float or a string")
    if knob.choices and (knob.low is not None or knob.high is not None or knob.log):
        raise ConfigError(f"{name} has both choices and a range; keep one of them")
    if isinstance(default, str) and not knob.choices:
        raise ConfigError(f"{name} is a string; give the choices=(…) that it can be")
    if not knob.choices and not isinstance(default, bool):
        if knob.low is None or knob.high is None:
            raise ConfigError(f"{name} is a number without a range; give low= and high=, or choices=(…)")
        if knob.low >= knob.high:
            raise ConfigError(f"{name} goes from low={knob.low} to high={knob.high}; low must be less than high")
        if knob.log and (isinstance(default, int) or knob.low <= 0):
            raise ConfigError(f"{name} has log=True, which needs a float default and low > 0; low is {knob.low}")
        if knob.step is not None and knob.step <= 0:
            raise ConfigError(f"{name} has step={knob.step}; it must be positive")
    if knob.choices and len({*knob.choices}) < len(knob.choices):
        raise ConfigError(f"{name} offers a choice twice: {knob.choices!r}")
    try:
        knob.check(default)
    except ConfigError as error:
        raise ConfigError(f"the default of {error}") from None
    return knob
