"""What must hold when a learner opens a notebook and runs it; a list of complaints, so that one run tells all of them."""

from pathlib import Path

from infra_lab.bench import lab_scripts
from infra_lab.bench.lab_page import LabPage
from infra_lab.bench.lab_panel import find_panels
from infra_lab.errors import InfraLabError

SIZES = [(dark, width) for dark in (False, True) for width in (1280, 1920)]

AFTERMATH_MS = 1_000
"""Errors that the last move causes reach the page after the figure has changed."""


def complaints_about(page: LabPage, *, has_panel: bool = True, pictures: Path | None = None) -> list[str]:
    """Run all cells, take pictures in light and dark, move every panel by keyboard; say what was wrong, or return []."""
    wrong = []
    for number, cell in enumerate(page.run_all(), 1):
        wrong += [f"code cell {number}: {error}" for error in cell.errors]
        if cell.source.strip() and cell.execution_count is None:
            wrong.append(f"code cell {number} did not run")
    if pictures is not None:
        find_panels(page)  # waits for them
        for dark, width in SIZES:
            name = f"{Path(page.path).stem}-{'dark' if dark else 'light'}-{width}.png"
            page.screenshot(pictures / name, dark=dark, width=width)
    if has_panel:
        wrong += _complaints_about_panels(page)
    page.evaluate(lab_scripts.CAUGHT_UP)
    page.page.wait_for_timeout(AFTERMATH_MS)
    return wrong + page.problems


def _complaints_about_panels(page: LabPage) -> list[str]:
    try:
        live = [panel for panel in find_panels(page) if panel.controls()]
        frozen = [panel.title for panel in live if not panel.follows_keyboard()]
    except InfraLabError as error:
        return [str(error)]
    if not live:
        return ["no panel with a figure and a control"]
    return [f"no control of {title!r} changes its figure" for title in frozen]
