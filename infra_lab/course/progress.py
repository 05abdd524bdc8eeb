"""The learner's progress: one JSON file outside the notebooks.

    {"version": 1, "sections": {"4.2": {"predictions": {"waste": {"value": 40}},
                                        "exercises": {"allocator": {"tries": 2, "failed": 1, "best": 3.0, ...}}}}}

Every change is read, made and written under a lock, and written to a new file that replaces the old one: two kernels
lose nothing, and a crash leaves the old file. A file that cannot be read is kept under another name.
"""

import copy
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from infra_lab.course.folders import progress_path

VERSION = 1
_UNSAVED: dict[Path, dict[str, Any]] = {}
"""The content of files that could not be written, as long as this process lives."""


class Progress:
    """The progress file. Where it cannot be written (a full or read-only disk), it says so and lives in memory."""

    def __init__(self, path: Path | None = None, *, say: Callable[[str], None] | None = None) -> None:
        self.path = path or progress_path()
        self._say = say or (lambda line: print(line, file=sys.stderr))

    def read(self) -> dict[str, Any]:
        """Return the whole content as it is now; changing it changes nothing in the file."""
        with self._edit() as data:
            return copy.deepcopy(data)

    def section(self, number: str) -> dict[str, Any]:
        """Return one section's `predictions` and `exercises`, as they are now."""
        return _section(self.read(), number)

    @contextmanager
    def edit(self, number: str) -> Iterator[dict[str, Any]]:
        """Change one section: what is assigned inside the block is saved at its end, unless it raises."""
        with self._edit(save=True) as data:
            yield _section(data, number)

    @contextmanager
    def _edit(self, *, save: bool = False) -> Iterator[dict[str, Any]]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock = self.path.with_name(self.path.name + ".lock").open("w")
        except OSError as error:
            yield self._in_memory(error)
            return
        import fcntl

        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            data = self._load()
            yield data
            if save:
                self._write(data)

    def _in_memory(self, error: OSError) -> dict[str, Any]:
        if self.path not in _UNSAVED:
            self._say(
                f"your progress cannot be saved in {self.path} ({error.strerror}); it lasts until the kernel stops. "
                "Set INFRA_LAB_PROGRESS to a file that you can write"
            )
            _UNSAVED[self.path] = _empty()
        return _UNSAVED[self.path]

    def _write(self, data: dict[str, Any]) -> None:
        partial = self.path.with_name(self.path.name + ".partial")
        try:
            partial.write_text(json.dumps(data, ensure_ascii=False, indent=1, sort_keys=True), encoding="utf-8")
            os.replace(partial, self.path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            self._in_memory(error).update(data)

    def _load(self) -> dict[str, Any]:
        if self.path in _UNSAVED:
            return _UNSAVED[self.path]
        try:
            data = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return _empty()
        except ValueError as error:  # not JSON, or not UTF-8
            return self._set_aside(str(error))
        except OSError as error:  # a folder of that name, no right to read
            return self._in_memory(error)
        if wrong := _what_is_wrong(data):
            return self._set_aside(wrong)
        return dict(data)

    def _set_aside(self, why: str) -> dict[str, Any]:
        stem, number = self.path.stem, 1
        while (kept := self.path.with_name(f"{stem}.damaged-{number}{self.path.suffix}")).exists():
            number += 1
        os.replace(self.path, kept)
        self._say(
            f"the progress file {self.path} is damaged ({why}); it is kept as {kept.name}, and a new one begins. "
            "If you can repair it, move it back"
        )
        return _empty()


def _empty() -> dict[str, Any]:
    return {"version": VERSION, "sections": {}}


def _section(data: dict[str, Any], number: str) -> dict[str, Any]:
    entry: dict[str, Any] = data["sections"].setdefault(number, {})
    entry.setdefault("predictions", {})
    entry.setdefault("exercises", {})
    return entry


def _what_is_wrong(data: object) -> str | None:
    if not isinstance(data, dict) or not isinstance(data.get("sections"), dict):
        return "it has no sections"
    if data.get("version") != VERSION:
        return f"it has version {data.get('version')!r}, and this package reads version {VERSION}"
    for number, entry in data["sections"].items():
        parts = [entry.get(name, {}) for name in ("predictions", "exercises")] if isinstance(entry, dict) else [None]
        if not all(isinstance(part, dict) and all(isinstance(v, dict) for v in part.values()) for part in parts):
            return f"section {number} is not what was written"
    return None
