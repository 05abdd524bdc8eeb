"""The notebook as it is stored: run, light, and with nothing in it that only a live kernel can show."""

from collections.abc import Iterator
from pathlib import Path

from infra_lab.course.contract.lesson import Lesson, Problem
from infra_lab.course.notebooks import code_cells, tags
from infra_lab.course.output import WIDGET_MIME

MAX_BYTES = 200_000


def output_problems(lesson: Lesson) -> Iterator[Problem]:
    """Require executed cells in order, static pictures of the panel, most outputs compared, and a small file."""
    yield from _run_problems(lesson)
    yield from _live_problems(lesson)
    size = lesson.path.stat().st_size
    if size >= MAX_BYTES:
        yield Problem("size", f"the notebook has {size:,} bytes; expected under {MAX_BYTES:,}: store smaller pictures")
    panel = lesson.tagged("panel")
    shown = {mime for _, cell in panel for output in cell.get("outputs", []) for mime in output.get("data", {})}
    if panel and not {"image/png", "text/plain"} <= shown:
        yield Problem(
            "panel-picture", "the panel's output needs image/png and text/plain beside the live figure", panel[0][0]
        )
    code = code_cells(lesson.notebook)
    ignored = sum("nbval-ignore-output" in tags(cell) for cell in code)
    if code and 2 * ignored >= len(code):
        yield Problem(
            "compared",
            f"{ignored} of {len(code)} code cells are tagged nbval-ignore-output; expected fewer than half: "
            "assert on the data in the next cell",
        )


def _run_problems(lesson: Lesson) -> Iterator[Problem]:
    counts: list[int | None] = []
    if all(cell["execution_count"] is None for cell in code_cells(lesson.notebook)):
        yield Problem("executed", "no cell was run; run `infra-lab lessons run`")
        return
    for number, cell in lesson.cells:
        if cell["cell_type"] != "code" or not cell["source"].strip():
            continue
        counts.append(cell["execution_count"])
        if cell["execution_count"] is None:
            yield Problem("executed", "the cell was not run; run `infra-lab lessons run`", number)
        if any(output["output_type"] == "error" for output in cell["outputs"]):
            yield Problem(
                "no-error", "the cell's stored output is an error; show an expected one with try/except", number
            )
    if None not in counts and counts != list(range(1, len(counts) + 1)):
        yield Problem(
            "executed-in-order", "the cells were not run once from top to bottom; run `infra-lab lessons run`"
        )
    if not any(cell["outputs"] for cell in code_cells(lesson.notebook)):
        yield Problem(
            "outputs", "no cell has an output, so that nbval would compare nothing; run `infra-lab lessons run`"
        )


def _live_problems(lesson: Lesson) -> Iterator[Problem]:
    if "widgets" in lesson.notebook["metadata"]:
        yield Problem("widget-state", "the notebook stores widget state (megabytes); run `infra-lab lessons run`")
    home, clone = str(Path.home()), str(lesson.labs.parent)
    for number, cell in lesson.cells:
        outputs = cell.get("outputs", [])
        if any(WIDGET_MIME in output.get("data", {}) for output in outputs):
            yield Problem("widget-view", "an output is a live widget that no reader of the file can see", number)
        texts = [str(output.get("text", "")) for output in outputs]
        texts += [
            str(data) for o in outputs for mime, data in o.get("data", {}).items() if not mime.startswith("image/")
        ]
        if any(f"{place}/" in text for text in texts for place in (home, clone) if len(place) > 1):
            yield Problem("machine-path", "an output names a folder of this machine; print a relative path", number)
