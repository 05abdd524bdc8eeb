"""A line of text that a screen reader says aloud when it changes."""

from typing import Any

import anywidget
import traitlets

_ESM = """
export default {
  render({ model, el }) {
    const region = document.createElement("div");
    region.className = "infra-lab-text infra-lab-" + model.get("tone");
    region.setAttribute("role", model.get("tone") === "error" ? "alert" : "status");
    region.setAttribute("aria-live", model.get("tone") === "error" ? "assertive" : "polite");
    const show = () => { region.textContent = model.get("text"); };
    model.on("change:text", show);
    show();
    el.append(region);
  },
};
"""


class Announcer(anywidget.AnyWidget):
    """Plain text in an ARIA live region. `text` is shown as it is, never read as HTML.

    The region itself has to stay in the page while its text changes, or nothing is announced; `widgets.HTML` replaces it.
    `tone`: "summary", "pinned", "note" or "error"; an error interrupts the reader.
    """

    _esm = _ESM
    text = traitlets.Unicode("").tag(sync=True)
    tone = traitlets.Unicode("summary").tag(sync=True)

    def __init__(self, text: str = "", *, tone: str = "summary", **options: Any) -> None:
        super().__init__(text=text, tone=tone, **options)
