"""A papermill engine for grading: every cell runs, whatever the ones before it did.

An error goes on to the next cell. A cell past its time, or one that floods, is interrupted; if it does not stop, or if
the kernel dies, the run ends there. What each cell did is written to a file as soon as it is done, so that a run that is
killed has not been for nothing.
"""

import asyncio
import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import Engine

from infra_lab.course.grading.transcript import CellRun
from infra_lab.course.output import GRADE_MIME

INTERRUPT_GRACE_S = 10.0
"""How long an interrupted cell may take to stop before its kernel is killed."""
MAX_GRADE_BYTES = 256 << 10
AFTER_FLOOD_BYTES = 64 << 10
"""What each later cell may still say, so that the checks after a flood count."""


class GradingClient(PapermillNotebookClient):  # type: ignore[misc]  # papermill has no types
    """Runs all cells within an output budget and writes what happened to a transcript."""

    def __init__(self, nb_man: Any, km: Any, *, transcript: Path, max_output_bytes: int, **options: Any) -> None:
        super().__init__(nb_man, km=km, raise_on_iopub_timeout=False, allow_errors=True, **options)
        self._transcript = transcript
        self._output_left = max_output_bytes
        self._flooded = self._timed_out = self._interrupted = False
        self._grades: list[dict[str, Any]] = []
        self._error = ""

    def papermill_execute_cells(self) -> None:
        """Run the cells in order; stop only where no kernel is left."""
        for index, cell in enumerate(self.nb.cells):
            began = time.monotonic()
            self._flooded = self._timed_out = self._interrupted = False
            self._grades, self._error = [], ""
            dead = ""
            try:
                self.execute_cell(cell, index)
            except (DeadKernelError, CellTimeoutError):
                dead = "timeout" if self._timed_out else "output-flood" if self._flooded else "crashed"
            if cell.cell_type == "code":
                run = CellRun(
                    cell.id, index + 1, time.monotonic() - began, self._grades, self._error,
                    self._timed_out, self._flooded, dead,
                )  # fmt: skip
                with self._transcript.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(run._asdict()) + "\n")
            if self._flooded:
                self._output_left = AFTER_FLOOD_BYTES
            if dead:
                return

    def process_message(self, msg: dict[str, Any], cell: Any, cell_index: int) -> Any:
        """Count what a cell says; keep grades and errors, drop what is over the budget and stop the cell."""
        content = msg["content"]
        if msg["msg_type"] in ("stream", "display_data", "execute_result", "update_display_data", "error"):
            data = content.get("data") or {}
            grade = data.get(GRADE_MIME)
            if grade is not None and len(json.dumps(grade)) <= MAX_GRADE_BYTES:
                self._grades.append(grade)
            elif msg["msg_type"] == "error":
                self._error = f"{content.get('ename', '')}: {str(content.get('evalue', ''))[:300]}"
            self._output_left -= len(content.get("text", "")) + sum(len(str(value)) for value in data.values())
            if self._output_left < 0:
                self._flooded = True
                self._interrupt()
            return None  # nothing is stored: the transcript has all that counts
        if msg["msg_type"].startswith("comm_"):
            return None  # of widgets that nobody sees; nbclient would keep the state of each
        return super().process_message(msg, cell, cell_index)

    async def _async_handle_timeout(self, timeout: int, cell: Any = None) -> None:
        self._timed_out = True
        self._interrupt()

    def _interrupt(self) -> None:
        if not self._interrupted:
            self._interrupted = True
            self._stopping = asyncio.ensure_future(self._stop_cell(self.task_poll_for_reply))

    async def _stop_cell(self, reply: "asyncio.Future[Any]") -> None:
        """Interrupt the running cell; if it goes on regardless, kill its kernel."""
        await self.km.interrupt_kernel()
        _, running = await asyncio.wait([reply], timeout=INTERRUPT_GRACE_S)
        if running:
            await self.km.shutdown_kernel(now=True)
            reply.cancel()


class GradingEngine(Engine):  # type: ignore[misc]  # papermill has no types
    """Registered with papermill under `name`."""

    name: ClassVar[str] = "infra-lab-grading"

    @classmethod
    def execute_managed_notebook(
        cls,
        nb_man: Any,
        kernel_name: str,
        *,
        transcript: Path,
        max_output_bytes: int,
        execution_timeout: int,
        start_timeout: int,
        socket_folder: Path,
        **_: Any,
    ) -> None:
        """Run the notebook on a kernel of its own, spoken to over sockets in a folder: no port can be taken twice."""
        manager = AsyncKernelManager(kernel_name=kernel_name, transport="ipc", ip=str(socket_folder / "k"))
        client = GradingClient(
            nb_man, manager, transcript=transcript, max_output_bytes=max_output_bytes, timeout=execution_timeout,
            startup_timeout=start_timeout, iopub_timeout=30, store_widget_state=False,
        )  # fmt: skip
        with suppress(
            DeadKernelError
        ):  # papermill asks even a dead kernel for its language; the transcript says it died
            client.execute(cleanup_kc=True)
