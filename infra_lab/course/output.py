"""One way to show something: a MIME bundle in a notebook, its plain text elsewhere."""

import html
import sys
from typing import Any

GRADE_MIME = "application/vnd.infra-lab.grade+json"
CLAIM_MIME = "application/vnd.infra-lab.claim+json"
WIDGET_MIME = "application/vnd.jupyter.widget-view+json"


def in_notebook() -> bool:
    """Whether a kernel is there to take rich output."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and getattr(shell, "kernel", None) is not None


def show(bundle: dict[str, Any]) -> None:
    """Display a MIME bundle (it must have text/plain); without a kernel, print the plain text."""
    if in_notebook():
        from IPython.display import publish_display_data

        publish_display_data(bundle)
    else:
        sys.stdout.write(bundle["text/plain"] + "\n")


def escape(text: str) -> str:
    """Make text safe inside HTML, keeping its line breaks."""
    return html.escape(text).replace("\n", "<br>")


def card(title: str, body: str, *, accent: str) -> str:
    """Draw an HTML box with a coloured edge; it takes the notebook theme's own colours."""
    return (
        f'<div style="border-left:4px solid {accent};padding:6px 12px;margin:4px 0;line-height:1.5">'
        f"<div><b>{title}</b></div>{body}</div>"
    )


GOOD, BAD, MIXED, NEUTRAL = "#2e7d32", "#c62828", "#b26a00", "#546e7a"
"""Accents that keep a contrast of 4.5 on white and stay visible on a dark theme; a word or a sign always says the same."""
