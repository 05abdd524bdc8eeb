"""What stands in the progress file.

{"version": 1, "sections": {"4.2": {"predictions": {"waste": {"value": 40}},
                                    "exercises": {"allocator": {"tries": 2, "failed": 1, "best": 3.0, ...}}}}}
"""

from typing import Any

VERSION = 1
_NUMBERS = ("tries", "failed", "points", "best", "hints")


def empty() -> dict[str, Any]:
    """Return the content of a new file."""
    return {"version": VERSION, "sections": {}}


def section_in(data: dict[str, Any], number: str) -> dict[str, Any]:
    """Return one section's part of the content, made if it is not there yet."""
    entry: dict[str, Any] = data["sections"].setdefault(number, {})
    entry.setdefault("predictions", {})
    entry.setdefault("exercises", {})
    return entry


def what_is_wrong(data: object) -> str | None:
    """Say why this is no content of a progress file, or None if it is one."""
    if not isinstance(data, dict) or not isinstance(data.get("sections"), dict):
        return "it has no sections"
    if data.get("version") != VERSION:
        return f"it has version {data.get('version')!r}, and this package reads version {VERSION}"
    for number, entry in data["sections"].items():
        parts = [entry.get(name, {}) for name in ("predictions", "exercises")] if isinstance(entry, dict) else [None]
        if not all(isinstance(part, dict) and all(map(_is_record, part.values())) for part in parts):
            return f"section {number} is not what was written"
    return None


def _is_record(record: object) -> bool:
    counts = [record.get(name, 0) for name in _NUMBERS] if isinstance(record, dict) else [None]
    return all(isinstance(count, int | float) for count in counts)
