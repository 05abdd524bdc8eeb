"""One notebook open in JupyterLab in a real browser: run it, read its cells, picture it, collect its problems.

JupyterLab's own commands and cell models are used, so "ran" means what JupyterLab says it means.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from infra_lab.bench import lab_scripts
from infra_lab.bench.lab_server import LabServer
from infra_lab.errors import InfraLabError

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Error, Page

OPEN_TIMEOUT_S = 90.0
RUN_TIMEOUT_S = 180.0
WINDOW_HEIGHT = 1000
MAX_PICTURE_HEIGHT = 16_000
REFLOW_MS = 700
"""Figures take up a new width a moment after the window has."""

_workspaces = count()


class CodeCell(NamedTuple):
    """What JupyterLab holds of a code cell after a run."""

    source: str
    execution_count: int | None
    outputs: list[dict[str, Any]]

    @property
    def errors(self) -> list[str]:
        """The errors among the outputs, a line each."""
        return [f"{out['ename']}: {out['evalue']}" for out in self.outputs if out["output_type"] == "error"]


class LabPage:
    """Built by `open_notebook`; problems gather in `problems` from the first request on."""

    def __init__(self, page: "Page", path: str) -> None:
        self.page, self.path = page, path
        self.problems: list[str] = []
        page.context.on("request", lambda request: self._check_address(request.url))
        page.on("websocket", lambda socket: self._check_address(socket.url))
        page.on("console", self._check_console)
        page.on("pageerror", self._note_page_error)

    def run_all(self) -> list[CodeCell]:
        """Clear all outputs, run all cells, and return the code cells.

        Raises InfraLabError if that takes more than RUN_TIMEOUT_S. A cell that fails stops those below it, as it does for
        a learner: their execution count stays None.
        """
        self.evaluate(lab_scripts.RUN_ALL, timeout_s=RUN_TIMEOUT_S)
        return self.cells()

    def cells(self) -> list[CodeCell]:
        """Return the code cells as they are now."""
        return [CodeCell(**cell) for cell in self.evaluate(lab_scripts.CELLS)]

    def screenshot(self, file: Path, *, dark: bool, width: int) -> Path:
        """Write a picture of the whole notebook in a window of that width; JupyterLab follows the system's colour scheme."""
        self.page.emulate_media(color_scheme="dark" if dark else "light")
        self.page.set_viewport_size({"width": width, "height": WINDOW_HEIGHT})
        self.page.wait_for_function(lab_scripts.HAS_THEME, arg="false" if dark else "true")
        self.page.wait_for_timeout(REFLOW_MS)
        height = min(int(self.evaluate(lab_scripts.HEIGHT)), MAX_PICTURE_HEIGHT)
        self.page.set_viewport_size({"width": width, "height": max(height, WINDOW_HEIGHT)})
        self.evaluate(lab_scripts.SHOW_TOP)
        self.page.wait_for_timeout(REFLOW_MS)
        file.parent.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=file)
        self.page.set_viewport_size({"width": width, "height": WINDOW_HEIGHT})
        return file

    def evaluate(self, script: str, argument: object = None, *, timeout_s: float = 30.0) -> Any:
        """Call a JavaScript function in the page and return its result.

        Raises InfraLabError if it throws, or has not ended in time.
        """
        from playwright.sync_api import Error

        try:
            return self.page.evaluate(lab_scripts.IN_TIME.replace("SCRIPT", script.strip()), [argument, timeout_s])
        except Error as error:
            raise InfraLabError(f"{self.path}: {error}") from error

    def _check_address(self, url: str) -> None:
        if not is_local(url):
            self._note(f"a request left the machine: {url}")

    def _check_console(self, message: "ConsoleMessage") -> None:
        if message.type == "error":
            self._note(f"console error: {message.text} ({message.location.get('url', '')})")

    def _note_page_error(self, error: "Error") -> None:
        self._note(f"uncaught error in the page: {error.message}")

    def _note(self, problem: str) -> None:
        if problem not in self.problems:
            self.problems.append(problem)


def is_local(url: str) -> bool:
    """Whether fetching the address stays on this machine."""
    parts = urlsplit(url)
    return parts.scheme in ("blob", "data", "about") or parts.hostname in ("127.0.0.1", "localhost", "::1")


@contextmanager
def open_notebook(browser: "Browser", server: LabServer, path: str) -> Iterator[LabPage]:
    """Open a notebook, relative to the server's folder, with its kernel ready; shut the kernel down at the end.

    Raises InfraLabError if the notebook or its kernel doesn't come up.
    """
    context = browser.new_context(viewport={"width": 1280, "height": WINDOW_HEIGHT}, color_scheme="light")
    try:
        page = LabPage(context.new_page(), path)
        page.page.goto(server.notebook_url(path, f"bench-{next(_workspaces)}"), wait_until="domcontentloaded")
        try:
            page.evaluate(lab_scripts.OPEN, path, timeout_s=OPEN_TIMEOUT_S)
        except InfraLabError as error:
            raise InfraLabError(f"{error}\nIs the notebook there, and does its metadata name a kernel?") from error
        try:
            yield page
        finally:
            page.evaluate(lab_scripts.SHUT_DOWN)
    finally:
        context.close()
