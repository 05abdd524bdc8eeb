"""What a panel gives a notebook: the live view, a picture of it, and its text.

A saved notebook without widget state shows the picture, on GitHub for one; a screen reader gets the text.
"""

import base64
from collections.abc import Sequence
from typing import Any

from infra_lab.widgets.live_figure import LiveFigure
from infra_lab.widgets.static_picture import stacked, static_png


def bundle(root: Any, figures: Sequence[LiveFigure], text: str) -> dict[str, Any]:
    """Return the MIME bundle of a panel whose outermost widget is `root`; without figures, no picture."""
    for figure in figures:
        figure.refresh()
    view = root._repr_mimebundle_()
    data = dict(view[0] if isinstance(view, tuple) else view)
    if figures:
        picture = stacked([static_png(figure.static()) for figure in figures])
        data["image/png"] = base64.b64encode(picture).decode()
    data["text/plain"] = text
    return data
