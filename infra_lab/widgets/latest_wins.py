"""A thread for one computation at a time, of which only the newest matters.

        submit                        submit: the running one is cancelled
IDLE ───────────▶ RUNNING ──┐      ┌────────────▶ RUNNING, one job pending (a later submit replaces it)
 ▲                 │        └──────┘                      │
 └─────────────────┴──── ended, cancelled or failed ◀─────┘  the pending job runs next; without one: IDLE
"""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Job = TypeVar("Job")


class Cancelled(BaseException):
    """Stop was pressed, or a newer change arrived. No Exception, so that a computation's own `except` doesn't eat it."""


class Ticket:
    """One run of one job; cancelled from outside, asked by the job."""

    def __init__(self) -> None:
        self.is_cancelled = False

    def check(self) -> None:
        """Raise Cancelled if the job shall not go on."""
        if self.is_cancelled:
            raise Cancelled


class LatestWins(Generic[Job]):
    """Runs `work(job, ticket)` on a thread; a new job cancels the running one and takes the place of a pending one.

    `work` must raise nothing but Cancelled, and should ask its ticket now and then. `on_idle` is called on the thread when
    nothing is left to do.
    """

    def __init__(self, work: Callable[[Job, Ticket], None], on_idle: Callable[[], None]) -> None:
        self._work, self._on_idle = work, on_idle
        self._changed = threading.Condition()
        self._pending: list[Job] = []
        self._ticket = Ticket()
        self._is_running = False

    def submit(self, job: Job) -> None:
        """Make this the next job; returns at once."""
        with self._changed:
            self._ticket.is_cancelled = True
            self._pending = [job]
            if not self._is_running:
                self._is_running = True
                threading.Thread(target=self._run, name="infra-lab-panel", daemon=True).start()

    def stop(self) -> None:
        """Cancel the running job and forget the pending one."""
        with self._changed:
            self._ticket.is_cancelled = True
            self._pending = []

    def wait(self, timeout_s: float) -> None:
        """Return when nothing runs or waits. Raises TimeoutError if that takes longer."""
        with self._changed:
            if not self._changed.wait_for(lambda: not self._is_running, timeout_s):
                raise TimeoutError(f"the computation has not ended after {timeout_s:g} s; stop it, or wait longer")

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._pending:
                    self._on_idle()
                    self._is_running = False
                    self._changed.notify_all()
                    return
                job = self._pending.pop()
                ticket = self._ticket = Ticket()
            try:
                self._work(job, ticket)
            except Cancelled:
                continue
