"""Time as a part that can be exchanged: the same scheduler runs on a wall clock and on a virtual one."""

import time
from typing import Protocol


class Clock(Protocol):
    """Where "now" comes from. Seconds from an arbitrary origin; never goes backwards."""

    def now(self) -> float:
        """Return the current time in seconds."""
        ...

    def sleep(self, seconds: float) -> None:
        """Let `seconds` go by (a virtual clock just moves on)."""
        ...


class WallClock:
    """The machine's monotonic clock."""

    def now(self) -> float:
        """Return the monotonic time in seconds."""
        return time.perf_counter()

    def sleep(self, seconds: float) -> None:
        """Block the calling thread for `seconds`."""
        time.sleep(seconds)


class VirtualClock:
    """A clock that moves only when told: simulations and tests run as fast as they can compute."""

    def __init__(self, start_s: float = 0.0) -> None:
        self._now_s = start_s

    def now(self) -> float:
        """Return the virtual time in seconds."""
        return self._now_s

    def sleep(self, seconds: float) -> None:
        """Move the virtual time on by `seconds`."""
        self._now_s += max(0.0, seconds)
