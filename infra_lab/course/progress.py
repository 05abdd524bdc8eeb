"""The learner's progress: one JSON file outside the notebooks.

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
from typing import IO, Any

from infra_lab.course.folders import progress_path
from infra_lab.course.progress_content import empty, section_in, what_is_wrong

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
        return section_in(self.read(), number)

    @contextmanager
    def edit(self, number: str) -> Iterator[dict[str, Any]]:
        """Change one section: what is assigned inside the block is saved at its end, unless it raises."""
        with self._edit(save=True) as data:
            yield section_in(data, number)

    @contextmanager
    def _edit(self, *, save: bool = False) -> Iterator[dict[str, Any]]:
        try:
            lock = self._lock()
        except OSError as error:
            yield self._in_memory(error)
            return
        with lock:
            data = self._load()
            yield data
            if save:
                self._write(data)

    def _lock(self) -> IO[str]:
        """Wait for the lock; closing the file gives it back. Raises OSError where there is none (some network disks)."""
        import fcntl

        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = self.path.with_name(self.path.name + ".lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:
            lock.close()
            raise
        return lock

    def _in_memory(self, error: OSError) -> dict[str, Any]:
        if self.path not in _UNSAVED:
            self._say(
                f"your progress cannot be saved in {self.path} ({error.strerror}); it lasts until the kernel stops. "
                "Set INFRA_LAB_PROGRESS to a file that you can write"
            )
            _UNSAVED[self.path] = empty()
        return _UNSAVED[self.path]

    def _write(self, data: dict[str, Any]) -> None:
        partial = self.path.with_name(self.path.name + ".partial")
        try:
            partial.write_text(json.dumps(data, ensure_ascii=False, indent=1, sort_keys=True), encoding="utf-8")
            os.replace(partial, self.path)
            _UNSAVED.pop(self.path, None)
        except OSError as error:
            partial.unlink(missing_ok=True)
            self._in_memory(error).update(data)

    def _load(self) -> dict[str, Any]:
        if self.path in _UNSAVED:
            return _UNSAVED[self.path]
        try:
            data = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return empty()
        except (ValueError, RecursionError) as error:  # not JSON, or not UTF-8
            return self._set_aside(str(error))
        except OSError as error:  # a folder of that name, no right to read
            return self._in_memory(error)
        if wrong := what_is_wrong(data):
            return self._set_aside(wrong)
        return dict(data)

    def _set_aside(self, why: str) -> dict[str, Any]:
        stem, number = self.path.stem, 1
        while (kept := self.path.with_name(f"{stem}.damaged-{number}{self.path.suffix}")).exists():
            number += 1
        try:
            os.replace(self.path, kept)
        except OSError as error:
            return self._in_memory(error)
        self._say(
            f"the progress file {self.path} is damaged ({why}); it is kept as {kept.name}, and a new one begins. "
            "If you can repair it, move it back"
        )
        return empty()
