"""`FigureCard`: one finished figure with a sentence that says what it shows, in the panels' clothes."""

from typing import Any

from infra_lab.widgets.announcer import Announcer
from infra_lab.widgets.bundle import bundle
from infra_lab.widgets.live_figure import LiveFigure
from infra_lab.widgets.panel_view import root, title_widget


class FigureCard:
    """Shows a plotly figure that follows the page's theme, with its static picture and its text beside it.

    figure: any figure that `static_png` can draw. text: what a reader should see in it, in plain words. Nothing in it
    moves; for knobs use `LiveTuner`.
    """

    def __init__(self, figure: Any, text: str, *, title: str = "") -> None:
        self.title, self.text = title, text
        self._live = LiveFigure()
        self._live.show(figure)
        caption = Announcer()
        caption.text = text
        self.widget = root([title_widget(title), caption, self._live.widget])

    @property
    def figure(self) -> Any:
        """The FigureWidget."""
        return self._live.widget

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        return bundle(self.widget, [self._live], "\n".join(line for line in (self.title, self.text) if line))
