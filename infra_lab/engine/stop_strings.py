"""Stop strings in a stream: found across the borders of chunks, never half shown."""

from collections.abc import Sequence
from typing import NamedTuple


class Watched(NamedTuple):
    """What may be shown now, and the stop string that was found, if any."""

    emit: str
    matched: str | None


class StopChecker:
    """Watches text for the first of several stop strings.

    Text that could still become a stop string is held back: the longest suffix that begins one. Of several matches the
    one that is complete first counts, and of those the one that began first: the same one however the text is cut.
    """

    def __init__(self, stop: Sequence[str] = (), include_stop: bool = False) -> None:
        self._stop = tuple(stop)
        self._include_stop = include_stop
        self._held = ""

    def push(self, text: str, *, armed: bool = True) -> Watched:
        """Take new text. Unless `armed` (fewer than `min_tokens` so far), nothing is looked for or held back.

        After a match nothing more comes out: the rest of the text is dropped.
        """
        if not self._stop:
            return Watched(text, None)
        text = self._held + text
        self._held = ""
        if not armed:
            return Watched(text, None)
        found = [(text.find(stop) + len(stop), -len(stop), stop) for stop in self._stop if stop in text]
        if found:
            end, _, stop = min(found)
            return Watched(text[: end if self._include_stop else end - len(stop)], stop)
        held = self._possible_beginning(text)
        self._held = text[len(text) - held :]
        return Watched(text[: len(text) - held], None)

    def flush(self) -> str:
        """Return what was held back: the text is over, so it was no stop string."""
        held, self._held = self._held, ""
        return held

    def _possible_beginning(self, text: str) -> int:
        """Length of the longest suffix of `text` that some stop string begins with."""
        longest = min(len(text), max(len(stop) for stop in self._stop) - 1)
        for length in range(longest, 0, -1):
            if any(stop.startswith(text[len(text) - length :]) for stop in self._stop):
                return length
        return 0
