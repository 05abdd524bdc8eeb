"""Take the README's picture of a live panel: the first lesson, in JupyterLab, in a real browser.

    python tools/draw_panel.py [--out docs/panel.png]

Needs what the browser tests need: the `test` extra and a Chromium.
"""

import argparse
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from infra_lab.bench.chromium import chromium
from infra_lab.bench.lab_page import open_notebook
from infra_lab.bench.lab_server import lab_server
from infra_lab.course.folders import labs_path

TITLE, PRESET = "The scheduler, live", "Memory too small"


def main() -> None:
    """Run the lesson, press a preset, take the picture."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("docs/panel.png"))
    out = parser.parse_args().out
    with TemporaryDirectory() as folder:
        labs = Path(folder) / "labs"
        shutil.copytree(labs_path(), labs)
        with (
            lab_server(labs, Path(folder) / "home") as server,
            chromium() as browser,
            open_notebook(browser, server, "00_start_here.ipynb") as lesson,
        ):
            lesson.run_all()
            lesson.page.set_viewport_size({"width": 1400, "height": 1200})
            panel = lesson.page.locator(".infra-lab-panel", has_text=TITLE)
            panel.scroll_into_view_if_needed()
            panel.locator("button", has_text=PRESET).click()
            lesson.page.wait_for_timeout(2000)  # until plotly has drawn
            out.parent.mkdir(parents=True, exist_ok=True)
            panel.screenshot(path=out)


if __name__ == "__main__":
    main()
