"""A real browser, and real servers on copies of the lessons.

Package scope: Playwright keeps an event loop running in this thread, so it must be gone before other tests start theirs.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from infra_lab.bench.chromium import chromium, chromium_path
from infra_lab.bench.lab_server import LabServer, lab_server
from infra_lab.errors import MissingExtraError
from tests.browser.connections import audit_environment
from tests.browser.sample_lab import write_sample_lab

if TYPE_CHECKING:
    from playwright.sync_api import Browser

LABS = Path(__file__).parents[2] / "labs"


class AuditedLab(NamedTuple):
    """A server, and the file in which its processes write down their connections."""

    server: LabServer
    log: Path


@pytest.fixture(scope="package")
def browser() -> "Iterator[Browser]":
    try:
        chromium_path()
    except MissingExtraError as error:
        if os.environ.get("INFRA_LAB_REQUIRE_BROWSER") == "1":
            raise
        pytest.skip(str(error))
    with chromium() as running:
        yield running


@pytest.fixture(scope="package")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AuditedLab]:
    """The lessons; a copy, because JupyterLab saves."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(LABS, folder / "labs", ignore=shutil.ignore_patterns(".*"))
    log = folder / "connections.log"
    with lab_server(folder / "labs", folder / "home", environment=audit_environment(log)) as server:
        yield AuditedLab(server, log)


@pytest.fixture(scope="package")
def sample_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AuditedLab]:
    """The notebooks that prove the harness."""
    folder = tmp_path_factory.mktemp("sample_lab")
    write_sample_lab(folder / "labs")
    log = folder / "connections.log"
    with lab_server(folder / "labs", folder / "home", environment=audit_environment(log)) as server:
        yield AuditedLab(server, log)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Where the screenshots go; set INFRA_LAB_SCREENSHOTS to keep them."""
    return Path(os.environ.get("INFRA_LAB_SCREENSHOTS") or tmp_path)
