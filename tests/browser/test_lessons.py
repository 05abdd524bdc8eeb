"""Every lesson, as a learner meets it: JupyterLab, a browser, all cells, all panels, and no word to the outside."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from infra_lab.bench.lab_page import open_notebook
from infra_lab.course.catalog import written_lessons
from tests.browser.conftest import LABS, AuditedLab
from tests.browser.connections import watch
from tests.browser.lesson_check import complaints_about

if TYPE_CHECKING:
    from playwright.sync_api import Browser

LESSONS = sorted(
    str(path.relative_to(LABS))
    for path in LABS.glob("**/*.ipynb")
    if not {"exercises", "solutions", ".ipynb_checkpoints"} & {*path.relative_to(LABS).parts}
)


def test_every_lesson_of_the_catalogue_is_tested_here() -> None:
    assert LESSONS, f"no lessons in {LABS}"
    assert sorted(str(path.relative_to(LABS)) for _, path in written_lessons(LABS)) == LESSONS


@pytest.mark.slow
@pytest.mark.parametrize("path", LESSONS)
def test_lesson(browser: "Browser", lab: AuditedLab, pictures: Path, path: str) -> None:
    with (
        watch(lab.server.processes, lab.log) as connections,
        open_notebook(browser, lab.server, path) as page,
    ):
        assert complaints_about(page, pictures=pictures) == []
    assert connections.foreign() == []
    assert any(line.startswith("start") for line in connections.audited), "the kernel has the audit hook"
    assert len(list(pictures.glob(f"{Path(path).stem}-*.png"))) == 4
