"""JSON files of a Hugging Face folder, read with the suspicion that files from elsewhere deserve."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from infra_lab.errors import CorruptModelError


class Fields:
    """Typed access to a JSON object; raises CorruptModelError, naming file, field and value, for another type."""

    def __init__(self, values: Mapping[str, Any], path: Path) -> None:
        self.values, self.path = values, path

    def integer(self, name: str, default: int | None = None) -> int:
        """Return a whole number; null counts as absent."""
        return int(self._get(name, int, "a whole number", default))

    def number(self, name: str, default: float | None = None) -> float:
        """Return a finite number; null counts as absent."""
        value = self._get(name, (int, float), "a number", default)
        if not math.isfinite(value):
            raise CorruptModelError(f"{self.path}: {name} is {value}, expected a number; fetch the model again")
        return float(value)

    def optional_number(self, name: str) -> float | None:
        """Return a finite number, or None if it is absent or null."""
        return None if self.values.get(name) is None else self.number(name)

    def boolean(self, name: str, default: bool) -> bool:
        """Return true or false; null counts as absent."""
        return bool(self._get(name, bool, "true or false", default))

    def text(self, name: str, default: str) -> str:
        """Return a string; null counts as absent."""
        return str(self._get(name, str, "a string", default))

    def nested(self, name: str) -> "Fields":
        """Return a nested object, empty if it is absent or null."""
        return Fields(self._get(name, dict, "an object", {}), self.path)

    def token_ids(self, name: str) -> tuple[int, ...]:
        """Return one token id or several, none if absent or null."""
        value = self.values.get(name)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if any(not isinstance(token_id, int) or isinstance(token_id, bool) for token_id in ids):
            raise CorruptModelError(f"{self.path}: {name} is {value!r}, expected token ids; fetch the model again")
        return tuple(dict.fromkeys(ids))

    def _get(self, name: str, kind: type | tuple[type, ...], expected: str, default: Any) -> Any:
        value = self.values.get(name)
        value = default if value is None else value
        is_wrong_bool = isinstance(value, bool) and kind is not bool
        if not isinstance(value, kind) or is_wrong_bool:
            raise CorruptModelError(f"{self.path}: {name} is {value!r}, expected {expected}; fetch the model again")
        return value


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that must hold an object; raises CorruptModelError if it does not."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CorruptModelError(f"{path} is not valid JSON ({error}); fetch the model again") from error
    if not isinstance(value, dict):
        raise CorruptModelError(f"{path} holds {type(value).__name__}, expected a JSON object; fetch the model again")
    return value
