"""The lessons as a learner meets them: from a slider to the repainted figure, from top to bottom, and in bytes.

JupyterLab and Chromium are the real ones. The first panel is one of the bench itself, of a lesson's weight; the others are
those of the lessons that are written.
"""

import shutil
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import quantiles
from subprocess import DEVNULL
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from infra_lab.bench.chromium import chromium, chromium_path
from infra_lab.bench.lab_page import open_notebook
from infra_lab.bench.lab_panel import find_panels
from infra_lab.bench.lab_server import LabServer, isolated_environment, lab_server
from infra_lab.bench.report import BenchReport, BenchRow, at_most
from infra_lab.bench.slider_latency import Change, measure_changes
from infra_lab.course.catalog import section_of, written_lessons
from infra_lab.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from playwright.sync_api import Browser

REPAINT_MS = 100.0
LESSON_S = 60.0
NOTEBOOK_KB = 200.0
TITLE_LETTERS = 14
OWN_PANEL = "bench_scheduler_panel.ipynb"


def run(*, quick: bool, say: Callable[[str], None]) -> BenchReport:
    """Measure all rows. Raises MissingExtraError if JupyterLab, Playwright or a Chromium is missing."""
    chromium_path()
    rows: list[BenchRow] = []
    with TemporaryDirectory(prefix="infra-lab-bench-") as folder:
        labs, home = Path(folder, "labs"), Path(folder, "home")
        lessons = _copy_lessons(labs)
        _write_panel_notebook(labs / OWN_PANEL)
        with chromium() as browser, lab_server(labs, home) as server:
            browser_version = browser.version
            for path in (OWN_PANEL, *lessons):
                say(f"slider to repaint: {path}")
                rows += _slider_rows(browser, server, path, 60 if quick else 100)
        for path in lessons:
            say(f"top to bottom: {path}")
            rows.append(_lesson_row(labs / path, home))
        rows += [_size_row(labs / path) for path in lessons]
    versions = {name: version(name) for name in ("jupyterlab", "ipywidgets", "plotly", "playwright")}
    return BenchReport("widgets", rows, versions={**versions, "chromium": browser_version})


def _copy_lessons(labs: Path) -> list[str]:
    """Copy the course, because JupyterLab saves what it opens; return the lessons' paths, relative to the copy."""
    from infra_lab.course.folders import labs_path

    try:
        source = labs_path()
    except ConfigError:  # an installed wheel carries no lessons: the bench's own panel is measured alone
        labs.mkdir()
        return []
    shutil.copytree(source, labs, ignore=shutil.ignore_patterns(".*"))
    return [str(path.relative_to(source)) for _, path in written_lessons(source)]


def _write_panel_notebook(path: Path) -> None:
    nbformat = _nbformat()
    cell = nbformat.v4.new_code_cell("from infra_lab.bench.scheduler_panel import scheduler_panel\n\nscheduler_panel()")
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": kernel}), path)


def _slider_rows(browser: "Browser", server: LabServer, path: str, num_changes: int) -> list[BenchRow]:
    """Time every panel of a notebook that follows its first slider; static figures and forms have no rows."""
    rows = []
    with open_notebook(browser, server, path) as page:
        failed = [error for cell in page.run_all() for error in cell.errors]
        if failed:
            return [_failure_row(path, f"in JupyterLab: {failed[0]}")]
        for panel in find_panels(page):
            changes = measure_changes(panel, num_changes)
            if changes:
                rows += latency_rows(_section(path), panel.title, changes)
    return rows


def latency_rows(section: str, title: str, changes: Sequence[Change]) -> list[BenchRow]:
    """Sum up a panel's changes: p50 and p95 to the settled figure, and how much of it the kernel worked."""
    settled = _percentiles([change.settled_ms for change in changes])
    first = _percentiles([change.first_ms for change in changes])
    kernel = _percentiles([change.kernel_ms for change in changes])
    name = f"{section} {title if len(title) <= TITLE_LETTERS else title[: TITLE_LETTERS - 1].rstrip() + '…'}"
    what = "from keydown in the page to the frame after the figure's last change"
    own = f"{title}: {len(changes)} changes; first changed frame at {first[0]:.0f} ms (p50), {first[1]:.0f} ms (p95)"
    inside = "between the kernel's busy and idle messages: compute, draw and send"
    return [
        at_most(f"{name}, p50", settled[0], "ms", "asked for", REPAINT_MS, 1.0, what),
        at_most(f"{name}, p95", settled[1], "ms", "asked for", REPAINT_MS, 1.0, own),
        at_most(f"{name}, kernel", kernel[0], "ms", "p50 to repaint", settled[0], None, inside),
    ]


def _percentiles(values: Sequence[float]) -> tuple[float, float]:
    cuts = quantiles(values, n=20, method="inclusive")
    return cuts[9], cuts[18]


def _lesson_row(path: Path, home: Path) -> BenchRow:
    try:
        from nbclient import NotebookClient
        from nbclient.exceptions import CellExecutionError, CellTimeoutError
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"running lessons needs {error.name}: pip install 'infra-lab[lab]'") from error
    notebook = _nbformat().read(path, as_version=4)
    client = NotebookClient(notebook, timeout=10 * LESSON_S, resources={"metadata": {"path": str(path.parent)}})
    begin = time.perf_counter()
    try:
        client.execute(env=isolated_environment(home), stderr=DEVNULL)
    except CellExecutionError as error:
        return _failure_row(path, f"under nbclient: {error.ename}: {error.evalue}")
    except CellTimeoutError:
        return _failure_row(path, f"under nbclient: a cell took more than {10 * LESSON_S:.0f} s")
    seconds = time.perf_counter() - begin
    note = "nbclient, with the kernel's start"
    return at_most(f"{_section(path)} all cells", seconds, "s", "asked for", LESSON_S, 1.0, note)


def _failure_row(path: str | Path, note: str) -> BenchRow:
    """A lesson that does not run has no times; the row says so where the times would stand."""
    return BenchRow(
        name=f"{_section(path)} cell fails",
        value=1.0,
        unit="notebook",
        peer="asked for",
        peer_value=0.0,
        ratio=1.0,
        ratio_meaning="notebooks that fail",
        target="≤ 0",
        is_reached=False,
        note=note,
    )


def _size_row(path: Path) -> BenchRow:
    return at_most(f"{_section(path)} size", path.stat().st_size / 1e3, "kB", "asked for", NOTEBOOK_KB, 1.0)


def _section(path: str | Path) -> str:
    found = section_of(Path(path))
    return found.number if found else "bench"


def _nbformat() -> Any:
    try:
        import nbformat
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"writing notebooks needs {error.name}: pip install 'infra-lab[lab]'") from error
    return nbformat
