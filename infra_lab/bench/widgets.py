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
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from infra_lab.bench.chromium import chromium, chromium_path
from infra_lab.bench.lab_page import open_notebook
from infra_lab.bench.lab_panel import find_panels
from infra_lab.bench.lab_server import LabServer, isolated_environment, lab_server
from infra_lab.bench.report import BenchReport, BenchRow, at_most
from infra_lab.bench.slider_latency import Change, measure_changes
from infra_lab.course.catalog import written_lessons
from infra_lab.errors import ConfigError, InfraLabError, MissingExtraError

if TYPE_CHECKING:
    from playwright.sync_api import Browser

REPAINT_MS = 100.0
LESSON_S = 60.0
NOTEBOOK_KB = 200.0
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
                rows += _slider_rows(browser, server, path, 60 if quick else 200)
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
            raise InfraLabError(f"{path}: a cell failed, so its panels cannot be timed: {failed[0]}")
        for panel in find_panels(page):
            changes = measure_changes(panel, num_changes)
            if changes:
                rows += latency_rows(f"{Path(path).stem}: {panel.title}", changes)
    return rows


def latency_rows(name: str, changes: Sequence[Change]) -> list[BenchRow]:
    """Sum up a panel's changes: p50 and p95 to the settled figure, and how much of it the kernel worked."""
    settled = _percentiles([change.settled_ms for change in changes])
    first = _percentiles([change.first_ms for change in changes])
    kernel = _percentiles([change.kernel_ms for change in changes])
    note = (
        "from keydown in the page to the frame after the figure's last change; in the kernel: between its busy and idle "
        "messages (compute, draw and send), beside the whole"
    )
    last = f"{len(changes)} changes; p50 / p95 to the first changed frame: {first[0]:.0f} / {first[1]:.0f} ms"
    return [
        at_most(f"{name}, p50", settled[0], "ms", "asked for", REPAINT_MS, 1.0, note),
        at_most(f"{name}, p95", settled[1], "ms", "asked for", REPAINT_MS, 1.0, last),
        at_most(f"{name}, kernel p50", kernel[0], "ms", "slider to repaint, p50", settled[0], None, note),
        at_most(f"{name}, kernel p95", kernel[1], "ms", "slider to repaint, p95", settled[1], None, note),
    ]


def _percentiles(values: Sequence[float]) -> tuple[float, float]:
    cuts = quantiles(values, n=20, method="inclusive")
    return cuts[9], cuts[18]


def _lesson_row(path: Path, home: Path) -> BenchRow:
    try:
        from nbclient import NotebookClient
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"running lessons needs {error.name}: pip install 'infra-lab[lab]'") from error
    notebook = _nbformat().read(path, as_version=4)
    client = NotebookClient(notebook, timeout=10 * LESSON_S, resources={"metadata": {"path": str(path.parent)}})
    begin = time.perf_counter()
    client.execute(env=isolated_environment(home))
    seconds = time.perf_counter() - begin
    return at_most(
        f"{path.stem}, all cells", seconds, "s", "asked for", LESSON_S, 1.0, "nbclient, with the kernel's start"
    )


def _size_row(path: Path) -> BenchRow:
    return at_most(f"{path.stem}, size", path.stat().st_size / 1e3, "kB", "asked for", NOTEBOOK_KB, 1.0)


def _nbformat() -> Any:
    try:
        import nbformat
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"writing notebooks needs {error.name}: pip install 'infra-lab[lab]'") from error
    return nbformat
