"""What differs between what was got and what was expected: the first place, with both values, as one sentence.

Both functions return None where there is no difference. They take numbers, strings, nested lists and dicts, NumPy arrays
and torch tensors; a list, a tuple and an array of the same content are equal.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

_SHOWN_CHARACTERS = 80


def first_difference(got: object, expected: object) -> str | None:
    """Compare exactly."""
    return _differ(_plain(got), _plain(expected), "")


def first_far_value(got: object, expected: object, *, atol: float, rtol: float) -> str | None:
    """Compare numbers within `atol + rtol * |expected|`, element by element; NaN is close to nothing."""
    values, wrong = _numbers(got)
    if wrong:
        return wrong
    wanted, wrong = _numbers(expected)
    if wrong:
        return f"the check itself is wrong, please report it: {wrong}"
    if values.shape != wanted.shape:
        return f"shape {_shape(values.shape)}, expected {_shape(wanted.shape)}"
    far = ~np.isclose(values, wanted, atol=atol, rtol=rtol)
    if not far.any():
        return None
    index = tuple(int(i) for i in np.argwhere(far)[0])
    place = f"first at [{', '.join(map(str, index))}]: " if index else ""
    difference = f"{place}{_number(values[index])}, expected {_number(wanted[index])}"
    limit = f"off by {abs(values[index] - wanted[index]):.2g}, allowed {atol + rtol * abs(wanted[index]):.2g}"
    return f"{difference} ({limit}{_more(int(far.sum()), values.size)})"


def _more(num_wrong: int, num_values: int) -> str:
    return f"; {num_wrong} of {num_values} values are wrong" if num_wrong > 1 else ""


def _plain(value: object) -> Any:
    """Turn tensors and arrays into nested lists, and NumPy's scalars into Python's."""
    if hasattr(value, "detach"):  # a torch tensor; torch itself is not imported for this
        value = value.detach().cpu()
    return value.tolist() if hasattr(value, "tolist") else value


def _differ(got: Any, expected: Any, place: str) -> str | None:
    at = f"at {place}: " if place else ""
    got, expected = _plain(got), _plain(expected)
    if isinstance(expected, list | tuple) and isinstance(got, list | tuple):
        for index, (one, other) in enumerate(zip(got, expected, strict=False)):
            if difference := _differ(one, other, f"{place}[{index}]"):
                return difference
        if len(got) != len(expected):
            return f"{at}{len(got)} items, expected {len(expected)}: {_short(got)}, expected {_short(expected)}"
        return None
    if isinstance(expected, dict) and isinstance(got, dict):
        if missing := [key for key in expected if key not in got]:
            return f"{at}no key {missing[0]!r}, expected {_short(expected)}"
        if extra := [key for key in got if key not in expected]:
            return f"{at}a key {extra[0]!r} that should not be there"
        return next((text for key in expected if (text := _differ(got[key], expected[key], f"{place}[{key!r}]"))), None)
    if isinstance(expected, str) and isinstance(got, str) and got != expected and len(expected) > _SHOWN_CHARACTERS:
        index = next(
            (i for i, (a, b) in enumerate(zip(got, expected, strict=False)) if a != b), min(len(got), len(expected))
        )
        return f"{at}first different character at {index}: {_short(got[index:])}, expected {_short(expected[index:])}"
    if _is_builtin(expected) and not _is_builtin(got):  # whose == might say anything
        return f"{at}{_short(got)} of type {type(got).__name__}, expected {_short(expected)}"
    return None if bool(got == expected) else f"{at}{_short(got)}, expected {_short(expected)}"


def _is_builtin(value: object) -> bool:
    return type(value).__module__ == "builtins"


def _numbers(value: Any) -> tuple[npt.NDArray[Any], str | None]:
    """Return the numbers as float64 (or complex), or what is wrong with them."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = (
            value.numpy() if str(value.dtype) != "torch.bfloat16" else value.float().numpy()
        )  # NumPy has no bfloat16
    try:
        array = np.asarray(value)
        if array.dtype.kind == "O":  # a list that holds tensors
            array = np.asarray([_plain(part) for part in array.ravel()]).reshape(array.shape)
        if array.dtype.kind not in "biufc":
            return np.empty(0), f"{_short(value)} of type {type(value).__name__}, expected numbers"
        return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64), None
    except (ValueError, TypeError) as error:
        return np.empty(0), f"{_short(value)} cannot be read as an array of numbers ({error})"


def _number(value: Any) -> str:
    return f"{value:.6g}"


def _shape(shape: tuple[int, ...]) -> str:
    return str(list(shape))


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 2]} …"
