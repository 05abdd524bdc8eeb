"""From a key on a panel's control to the repainted figure: the delay that a learner feels, taken apart.

    keydown ─► widget message ─► kernel: compute, draw ─► figure message ─► SVG changes ─► frame on the screen
       0                        busy ── kernel_ms ── idle                                first_ms … settled_ms

The page's own clock times the ends, the kernel's own clock the part in the kernel (its busy and idle messages).
"""

from typing import TYPE_CHECKING, Any, NamedTuple

from infra_lab.bench.lab_panel import GRAPH, PANEL, Panel, settled_graphs
from infra_lab.errors import InfraLabError

if TYPE_CHECKING:
    from playwright.sync_api import Locator

WARM_UP = 10
QUIET_MS = 150
"""A change is over when the figure's SVG has been still, and the kernel idle, for so long."""
PATIENCE_MS = 5_000
GIVE_UP_AFTER = 2

_INSTALL = """
([panelSelector, graphSelector, index]) => {
    window.labProbe?.stop();
    const probe = window.labProbe = { begin: Infinity, touched: 0, first: 0, settled: 0, busy: new Map(), worked: [] };
    const onKey = () => {
        Object.assign(probe, { begin: performance.now(), touched: 0, first: 0, settled: 0, worked: [] });
    };
    addEventListener('keydown', onKey, { capture: true });
    const observer = new MutationObserver(mutations => {
        const begin = probe.begin;
        if (!mutations.some(mutation => mutation.target instanceof SVGElement)) return;
        probe.touched = performance.now();
        // The first callback comes before the frame with this change is painted, the second one after it.
        requestAnimationFrame(() => requestAnimationFrame(() => {
            if (probe.begin !== begin) return;
            probe.settled = performance.now() - begin;
            probe.first ||= probe.settled;
        }));
    });
    for (const graph of document.querySelectorAll(panelSelector)[index].querySelectorAll(graphSelector)) {
        observer.observe(graph, { subtree: true, childList: true, attributes: true, characterData: true });
    }
    const onMessage = (_, message) => {
        if (message.header.msg_type !== 'status' || message.parent_header.msg_type !== 'comm_msg') return;
        const id = message.parent_header.msg_id;
        const now = Date.parse(message.header.date) - performance.timeOrigin;
        if (message.content.execution_state === 'busy') probe.busy.set(id, now);
        else if (probe.busy.has(id)) {
            probe.worked.push([probe.busy.get(id), now]);
            probe.busy.delete(id);
        }
    };
    const messages = window.labPanel.sessionContext.session.kernel.iopubMessage;
    messages.connect(onMessage);
    probe.stop = () => {
        removeEventListener('keydown', onKey, { capture: true });
        observer.disconnect();
        messages.disconnect(onMessage);
    };
}
"""

_WAIT = """
async ([quiet, patience]) => {
    const probe = window.labProbe;
    const pause = () => new Promise(resolve => setTimeout(resolve, 20));
    while (performance.now() - probe.begin < patience) {
        await pause();
        const still = performance.now() - probe.touched > quiet;
        if (probe.settled && still && !probe.busy.size) break;
    }
    const end = probe.begin + probe.settled;  // what the kernel does later, a learner doesn't wait for
    const within = ([busy, idle]) => Math.max(0, Math.min(idle, end) - Math.max(busy, probe.begin));
    const kernel = probe.worked.map(within).reduce((sum, part) => sum + part, 0);
    return [probe.first, probe.settled, kernel];
}
"""


class Change(NamedTuple):
    """One key press that changed the figure; all in milliseconds after the key, `kernel_ms` a duration."""

    first_ms: float
    """The first frame in which the figure differed."""
    settled_ms: float
    """The frame after its last change: the whole figure is up to date."""
    kernel_ms: float
    """How long of that the kernel was busy with messages of widgets."""


def measure_changes(panel: Panel, num_changes: int) -> list[Change]:
    """Press arrow keys on the panel's first slider, up and down its range, until a figure of the panel changed so often.

    WARM_UP changes before them don't count. A panel without a slider, or whose figures the first key presses leave as they
    are, is not live in this sense: the list is empty. Raises InfraLabError if it stops being live later.
    """
    page = panel.page
    sliders = panel.sliders()
    if not sliders:
        return []
    settled_graphs(page)
    sliders[0].scroll_into_view_if_needed()
    page.evaluate(_INSTALL, [PANEL, GRAPH, panel.index])
    changes: list[Change] = []
    num_unchanged, key = 0, "ArrowRight"
    while len(changes) < WARM_UP + num_changes:
        key = _turn_at_the_end(sliders[0], key)
        sliders[0].focus()
        page.page.keyboard.press(key)
        change = Change(*page.evaluate(_WAIT, [QUIET_MS, PATIENCE_MS]))
        if change.settled_ms:
            changes.append(change)
            continue
        num_unchanged += 1
        if not changes and num_unchanged == GIVE_UP_AFTER:
            return []
        if num_unchanged > GIVE_UP_AFTER + len(changes):
            raise InfraLabError(
                f"{page.path}, {panel.title!r}: {num_unchanged} of {num_unchanged + len(changes)} moves of the first slider "
                f"left the figures as they were for {PATIENCE_MS / 1000:g} s"
            )
    return changes[WARM_UP:]


def _turn_at_the_end(slider: "Locator", key: str) -> str:
    ends: Any = slider.evaluate(
        "node => ['Now', 'Min', 'Max'].map(end => parseFloat(node.getAttribute('aria-value' + end.toLowerCase())))"
    )
    now, low, high = ends
    if now >= high:
        return "ArrowLeft"
    return "ArrowRight" if now <= low else key
