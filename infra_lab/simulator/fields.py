"""From what a configuration file says to frozen dataclasses: every field known, of the right type, and named in the error."""

import math
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from infra_lab.errors import ConfigError

T = TypeVar("T")
_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text", types.NoneType: "nothing"}


def mapping_of(value: object, where: str) -> dict[str, Any]:
    """Return a section of the file as a dict with text for keys. Raises ConfigError."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} is {value!r}; expected a section of fields")
    for key in value:
        if not isinstance(key, str):
            raise ConfigError(f"{where}: the field {key!r} is not text")
    return dict(value)


def refuse_unknown(section: Mapping[str, Any], known: "typing.Iterable[str]", where: str) -> None:
    """Raise ConfigError for the first field that is not known, with those that are."""
    known = list(known)
    for name in section:
        if name not in known:
            raise ConfigError(f"{where}: unknown field {name!r}; known: {', '.join(known)}")


def build(cls: type[T], value: object, where: str, **given: object) -> T:
    """Return `cls(**section)`, a dataclass: each field checked against its type, nested dataclasses built alike.

    `given` are fields that the file does not have. Raises ConfigError, naming the section and the field, for one that is
    unknown, missing or of another type, and for what the class itself refuses.
    """
    section = mapping_of(value, where)
    assert is_dataclass(cls)
    hints = typing.get_type_hints(cls)
    own = {field.name: field for field in fields(cls) if field.init and field.name not in given}
    refuse_unknown(section, own, where)
    for name, field in own.items():
        if name not in section and field.default is MISSING and field.default_factory is MISSING:
            raise ConfigError(f"{where}: the field {name!r} is missing")
    values = {name: convert(hints[name], item, f"{where}.{name}") for name, item in section.items()}
    try:
        return typing.cast("type[T]", cls)(**values, **given)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def convert(hint: Any, value: object, where: str) -> Any:
    """Return a value as the type says. Raises ConfigError, naming the field and what was expected."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return _convert_union(get_args(hint), value, where)
    if origin is Literal:
        if value not in get_args(hint):
            raise ConfigError(f"{where} is {value!r}; known: {', '.join(map(str, get_args(hint)))}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise ConfigError(f"{where} is {value!r}; expected a list")
        return tuple(convert(get_args(hint)[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if is_dataclass(hint):
        return build(typing.cast("type[Any]", hint), value, where)
    if hint is float:
        return _number(value, where)
    if hint not in _NAMES:
        raise ConfigError(f"{where} cannot be set in a file")
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"{where} is {value!r}; expected {_NAMES[hint]}")
    return value


def _convert_union(hints: tuple[Any, ...], value: object, where: str) -> Any:
    if value is None and types.NoneType in hints:
        return None
    hints = tuple(hint for hint in hints if hint is not types.NoneType)
    for hint in hints[:-1]:
        try:
            return convert(hint, value, where)
        except ConfigError:
            continue
    return convert(hints[-1], value, where)


def _number(value: object, where: str) -> float:
    """A float; also from text, for YAML 1.1 takes 1e-3 (without a point) for such."""
    try:
        number = math.nan if isinstance(value, bool) or not isinstance(value, int | float | str) else float(value)
    except ValueError:
        number = math.nan
    if math.isnan(number):
        raise ConfigError(f"{where} is {value!r}; expected a number")
    return number
