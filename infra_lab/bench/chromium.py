"""The system's Chromium under Playwright; no browser is downloaded."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

from infra_lab.errors import MissingExtraError

if TYPE_CHECKING:
    from playwright.sync_api import Browser

NAMES = ("chromium", "chromium-browser", "google-chrome")


def chromium_path() -> str:
    """Find the browser: `$INFRA_LAB_CHROMIUM`, or the first of `NAMES` on the path.

    Raises MissingExtraError, saying what to install, if Playwright or the browser is missing.
    """
    if find_spec("playwright") is None:
        raise MissingExtraError("driving a browser needs Playwright: pip install 'infra-lab[test]'")
    chosen = os.environ.get("INFRA_LAB_CHROMIUM")
    for name in (chosen,) if chosen else NAMES:
        if found := shutil.which(name):
            return found
    if chosen:
        raise MissingExtraError(
            f"INFRA_LAB_CHROMIUM names {chosen!r}, which is no program: give the path of a Chromium"
        )
    raise MissingExtraError(
        f"no browser: none of {', '.join(NAMES)} is on the path; "
        "install Chromium (Debian: apt install chromium) or name one in INFRA_LAB_CHROMIUM"
    )


@contextmanager
def chromium() -> Iterator["Browser"]:
    """A headless browser for the length of the block. Raises as `chromium_path` does."""
    path = chromium_path()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # In a container Chromium's own sandbox cannot start; the pages are ours. A proxy would hide who is asked for what.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--no-proxy-server"])
        try:
            yield browser
        finally:
            browser.close()
