"""The widgets of a panel and how they lie: title, controls, actions, progress, texts, figure."""

from collections.abc import Callable, Iterable
from html import escape
from typing import Any

import ipywidgets as widgets

from infra_lab.widgets.announcer import Announcer
from infra_lab.widgets.frame import Frame
from infra_lab.widgets.style import ROOT_CLASS


def title_widget(title: str) -> Any:
    """Return a heading."""
    text = escape(title, quote=True)
    return widgets.HTML(f'<h4 class="infra-lab-title" aria-label="{text}">{text}</h4>' if title else "")


def button(label: str, tooltip: str, on_click: Callable[[], object], *, quiet: bool = False) -> Any:
    """Return a button that calls a function without arguments."""
    made = widgets.Button(description=label, tooltip=tooltip)
    made.on_click(lambda _: on_click())
    if quiet:
        made.add_class("infra-lab-quiet")
    return made


def box(children: Iterable[Any], css_class: str) -> Any:
    """Return a box that the style sheet lays out."""
    made = widgets.Box(list(children))
    made.add_class(css_class)
    return made


def root(children: Iterable[Any]) -> Any:
    """Return a panel's outermost widget: all rules of the style sheet are about what lies in it."""
    made = widgets.VBox([Frame(), *children])
    made.add_class(ROOT_CLASS)
    return made


class ProgressRow:
    """A bar, a line of text and a Stop button; hidden while nothing runs."""

    def __init__(self, on_stop: Callable[[], None]) -> None:
        self.bar = widgets.FloatProgress(min=0.0, max=1.0, layout={"width": "220px"})
        self.note = Announcer(tone="note")
        self.stop_button = button("Stop", "End this computation; the figure stays as it is", on_stop)
        self.row = box([self.bar, self.stop_button, self.note], "infra-lab-actions")
        self.is_visible(False)

    def is_visible(self, visible: bool) -> None:
        """Show or hide the row."""
        self.row.layout.display = "" if visible else "none"

    def show(self, fraction: float, text: str) -> None:
        """Set the bar to a fraction of 1 and say what is going on."""
        self.bar.value, self.note.text = min(max(fraction, 0.0), 1.0), text
