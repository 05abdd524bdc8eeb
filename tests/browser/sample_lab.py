"""A small lab to prove the harness on: a sound notebook, and mutants that each do one thing that must be reported."""

from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

PANEL = """
import ipywidgets as widgets
import plotly.graph_objects as go

figure = go.FigureWidget(go.Bar(y=[1, 2, 3]))
slider = widgets.IntSlider(description="tokens", min=1, max=8, value=3)
""".strip()

FOLLOWS = """
def draw(change):
    with figure.batch_update():
        figure.data[0].y = list(range(1, change["new"] + 1))

slider.observe(draw, "value")
""".strip()

DROPDOWN = PANEL[: PANEL.index("slider")] + "slider = widgets.Dropdown(options=[1, 2, 3, 4])"
STOPS = FOLLOWS.replace("    with", "    if change['new'] > 5:\n        return\n    with")

SHOW = """
panel = widgets.VBox([slider, figure])
panel.add_class("infra-lab-panel")
panel
""".strip()

RAISES = FOLLOWS + "\nslider.observe(lambda change: 1 / 0, 'value')"

FROZEN_TUNER = """
from dataclasses import dataclass
import plotly.graph_objects as go
from infra_lab.widgets import LiveTuner, knob

@dataclass(frozen=True)
class Params:
    tokens: int = knob(3, low=1, high=8)

LiveTuner(Params, lambda params: params.tokens, lambda tokens: go.Figure(go.Bar(y=[1, 2, 3])), title="Frozen")
""".strip()

LIVE_TUNER = FROZEN_TUNER.replace("y=[1, 2, 3]", "y=np.arange(tokens)").replace("Frozen", "Live")
LIVE_TUNER = f"import numpy as np\n{LIVE_TUNER}"

SCRIPT = "from IPython.display import Javascript\nJavascript({!r})"
CONNECT = "import socket\nwith socket.create_connection(({!r}, {}), timeout=5) as connection:\n    connection.recv(1)"
CONNECT_FROM_SHELL = "import subprocess\nsubprocess.run(['bash', '-c', 'read -N 1 < /dev/tcp/{}/{}'])"
"""No Python of ours runs in the process that connects, so only the table of connections can tell."""
LOOK_UP = "import socket\ntry:\n    socket.getaddrinfo('pypi.example', 443)\nexcept OSError:\n    print('no such name')"

MUTANTS = {
    "failing_cell": [PANEL, "1 / 0", SHOW],
    "frozen_figure": [PANEL, SHOW],
    "failing_callback": [PANEL, RAISES, SHOW],
    "frozen_tuner": [FROZEN_TUNER],
    "no_panel": ["1 + 1"],
    "figure_alone": [PANEL, SHOW.replace("slider, ", "")],
    "console_error": [PANEL, FOLLOWS, SCRIPT.format("console.error('planted')"), SHOW],
    "page_error": [PANEL, FOLLOWS, SCRIPT.format("setTimeout(() => { throw new Error('planted') })"), SHOW],
    "request_to_elsewhere": [PANEL, FOLLOWS, SCRIPT.format("fetch('http://198.51.100.1/x').catch(() => 0)"), SHOW],
}
"""By the name of the notebook: the cells."""


def write_notebook(path: Path, *cells: str) -> None:
    """Write a notebook of one heading and these code cells, without outputs."""
    notebook = new_notebook(cells=[new_markdown_cell(f"# {path.stem}"), *map(new_code_cell, cells)])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)


def write_sample_lab(labs: Path) -> None:
    """Write the sound notebook and its mutants into the folder `labs`."""
    write_notebook(labs / "sound.ipynb", PANEL, FOLLOWS, SHOW)
    write_notebook(labs / "dropdown.ipynb", DROPDOWN, FOLLOWS, SHOW)
    write_notebook(labs / "live_tuner.ipynb", LIVE_TUNER)
    write_notebook(labs / "figure_that_stops.ipynb", PANEL, STOPS, SHOW)
    for name, cells in MUTANTS.items():
        write_notebook(labs / f"{name}.ipynb", *cells)
