"""The live panels of an open notebook, found by their class and worked by keyboard, as a learner without a mouse would."""

from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING

from infra_lab.bench.lab_page import LabPage
from infra_lab.errors import InfraLabError

if TYPE_CHECKING:
    from playwright.sync_api import Locator

PANEL = ".infra-lab-panel:has(.js-plotly-plot)"
GRAPH = ".js-plotly-plot"
SLIDER = ".noUi-handle"
PROGRESS = ".widget-hprogress"
"""Visible while a slow panel computes, on a thread that the kernel's status knows nothing of."""
CONTROLS = (SLIDER, "select", "input[type=checkbox]", "button.jupyter-button:not([disabled]):not(.infra-lab-quiet)")
"""In the order in which they are tried. Plotly's own buttons and the panels' quiet ones (reset, pin) move no knob."""

APPEAR_S = 5.0
SETTLE_S = 20.0
MOVE_S = 4.0
"""How long a figure has to follow a control, with nothing at work any more, before the next control is tried."""
KEY_MS = 100

_GRAPHS = """
([panel, graph, index]) => [...document.querySelectorAll(panel)]
    .filter((_, position) => index === null || position === index)
    .flatMap(panel => [...panel.querySelectorAll(graph)])
    .map(graph => [...graph.querySelectorAll('svg.main-svg')].map(svg => svg.innerHTML).join(''))
"""


_IS_IDLE = "() => window.labPanel.sessionContext.session.kernel.status === 'idle'"


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel that has a figure; `index` counts them down the page."""

    page: LabPage
    index: int

    @property
    def root(self) -> "Locator":
        """The panel's outermost element."""
        return self.page.page.locator(PANEL).nth(self.index)

    @property
    def title(self) -> str:
        """The panel's heading, or "panel N"."""
        heading = self.root.locator(".infra-lab-title")
        return (heading.first.text_content() or "") if heading.count() else f"panel {self.index + 1}"

    def controls(self) -> "list[Locator]":
        """List what can be moved, sliders first; a panel that only shows a figure has none."""
        found = [self.root.locator(kind).locator("visible=true") for kind in CONTROLS]
        return [locator.nth(number) for locator in found for number in range(locator.count())]

    def sliders(self) -> "list[Locator]":
        """List the handles of the sliders."""
        found = self.root.locator(SLIDER).locator("visible=true")
        return [found.nth(number) for number in range(found.count())]

    def follows_keyboard(self) -> bool:
        """Move one control after the other by a key, until a figure of the panel changes; say whether one did."""
        before = settled_graphs(self.page, self.index)
        for control in self.controls():
            press(self.page, control)
            begin, idle_s = monotonic(), 0.0
            while idle_s < MOVE_S and monotonic() - begin < SETTLE_S:
                if _graphs(self.page, self.index) != before:
                    return True
                self.page.page.wait_for_timeout(200)
                idle_s = 0.0 if self.is_at_work() else idle_s + 0.2
        return False

    def is_at_work(self) -> bool:
        """Whether the kernel runs something, or the panel computes."""
        return not self.page.evaluate(_IS_IDLE) or self.root.locator(PROGRESS).locator("visible=true").count() > 0


def find_panels(page: LabPage) -> list[Panel]:
    """List the panels with figures, after a few seconds in which the first may appear: widgets come after their cell."""
    from playwright.sync_api import TimeoutError as NotThereError

    try:
        page.page.locator(PANEL).first.wait_for(state="attached", timeout=APPEAR_S * 1000)
    except NotThereError:
        return []
    settled_graphs(page)
    return [Panel(page, index) for index in range(page.page.locator(PANEL).count())]


def settled_graphs(page: LabPage, index: int | None = None) -> list[str]:
    """Return the SVG of every figure, of one panel or of all, once none has changed for a moment.

    Raises InfraLabError if the figures don't come to rest, or if one stays empty.
    """
    before: list[str] | None = None
    for _ in range(int(SETTLE_S / 0.3)):
        after = _graphs(page, index)
        if after == before and all(after):
            return after
        before = after
        page.page.wait_for_timeout(300)
    raise InfraLabError(f"{page.path}: the figures were still changing, or one was empty, after {SETTLE_S:g} s")


def press(page: LabPage, control: "Locator") -> None:
    """Focus a control and press the keys that move it: an arrow, away from a slider's end, or Space.

    A list is opened first: while it is closed, JupyterLab takes the arrow for itself and goes to the next cell.
    """
    control.scroll_into_view_if_needed()
    control.focus()
    kind = control.evaluate("node => node.getAttribute('role') === 'slider' ? 'slider' : node.tagName.toLowerCase()")
    at_end = "node => parseFloat(node.getAttribute('aria-valuenow')) >= parseFloat(node.getAttribute('aria-valuemax'))"
    if kind == "slider":
        keys = ["ArrowLeft" if control.evaluate(at_end) else "ArrowRight"]
    else:
        keys = ["Space", "ArrowDown", "Enter"] if kind == "select" else ["Space"]
    for key in keys:
        page.page.keyboard.press(key)
        page.page.wait_for_timeout(KEY_MS)


def _graphs(page: LabPage, index: int | None) -> list[str]:
    found: list[str] = page.evaluate(_GRAPHS, [PANEL, GRAPH, index])
    return found
