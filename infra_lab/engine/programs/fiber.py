"""A thread that takes turns with its driver: one of the two runs, the other one waits.

      driver            fiber
    resume() ──────▶  runs …
       │              pause()
    goes on  ◀──────    │
    resume() ──────▶  goes on …
       │              returns, or raises
    goes on  ◀──────

So plain Python code can stop in the middle of a function until a value is there, and nothing that driver and fibers share
needs a lock. (A generator could stop only in its own body, and every function between would have to be one.)
"""

import contextvars
import threading
from collections.abc import Callable

from infra_lab.errors import InvalidRequestError

LOOK_UP_S = 0.1
"""A signal that comes just before a thread blocks does not wake it: how late Ctrl-C may be noticed."""


class FiberCancelled(BaseException):
    """Raised in a fiber that has been given up, so that it unwinds; no `except Exception` stops it."""


class Fiber:
    """Runs `body`, which must not raise, on a thread of its own, in the context variables of its maker."""

    def __init__(self, body: Callable[[], None], name: str) -> None:
        self.has_ended = False
        self._body = body
        self._context = contextvars.copy_context()
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._is_cancelled = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def resume(self) -> None:
        """Let it run until it pauses or ends. The driver calls this."""
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._go.release()
        while not self._back.acquire(timeout=LOOK_UP_S):
            pass

    def pause(self) -> None:
        """Let the driver run, until it resumes this one. The fiber calls this.

        Raises FiberCancelled if there is no going on, InvalidRequestError on any other thread.
        """
        self.check()
        if threading.current_thread() is not self._thread:
            raise InvalidRequestError(
                "only the program itself can wait for its values; read them before another thread or the caller needs them"
            )
        self._back.release()
        self._go.acquire()
        self.check()

    def check(self) -> None:
        """Raise FiberCancelled if the driver has given this one up."""
        if self._is_cancelled:
            raise FiberCancelled

    def cancel(self, timeout_s: float = 1.0) -> None:
        """Have it unwind, and wait for that. Code that computes or sleeps is not interrupted, and after a while left alone."""
        if self._thread.ident is None or self.has_ended:
            self.has_ended = True
            return
        self._is_cancelled = True
        self._go.release()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            self._context.run(self._body)
        finally:
            self.has_ended = True
            self._back.release()
