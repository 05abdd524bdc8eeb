"""Time as a part that can be exchanged: the same scheduler runs on a wall clock and on a virtual one."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
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


class ComputeClock:
    """The machine's clock, from 0, without its idle time: sleeping moves it on at once.

    What is computed takes what it takes; the gap to the next arrival takes nothing.
    """

    def __init__(self) -> None:
        self._origin_s = self._elapsed_s()

    def now(self) -> float:
        """Return seconds since the start, those slept through among them."""
        return self._elapsed_s() - self._origin_s

    def sleep(self, seconds: float) -> None:
        """Move on by `seconds`."""
        self._origin_s -= max(0.0, seconds)

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """What is computed meanwhile takes nothing, either."""
        begin_s = self._elapsed_s()
        try:
            yield
        finally:
            self._origin_s += self._elapsed_s() - begin_s

    def _elapsed_s(self) -> float:
        return time.perf_counter()


class CPUClock(ComputeClock):
    """The same of the calling thread's CPU time: what an engine would show on a core of its own.

    On the machine's clock, every program that shares the core is part of the measurement. True only of an engine that computes
    in the thread that calls it (num_threads=1, on a CPU, without overlap).
    """

    def _elapsed_s(self) -> float:
        return time.thread_time()
