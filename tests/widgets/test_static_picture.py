"""Pictures for saved notebooks: real PNGs in which what was drawn can be seen."""

import io
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go
import pytest
from PIL import Image

from infra_lab.engine.recorder import StepRecord
from infra_lab.errors import ConfigError
from infra_lab.widgets import figures
from infra_lab.widgets.figures import RooflinePoint
from infra_lab.widgets.static_picture import stacked, static_png


def pixels(png: bytes) -> npt.NDArray[np.int16]:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), np.int16)


def share(png: bytes, rgb: tuple[int, int, int]) -> float:
    """Share of the pixels that have nearly this colour."""
    return float((np.abs(pixels(png) - np.array(rgb)).max(axis=-1) < 12).mean())


RED, BLUE = (255, 0, 0), (0, 0, 255)
SQUARE = {"margin": {"l": 0, "r": 0, "t": 0, "b": 0}, "height": 400, "showlegend": False}
AXES = {"xaxis": {"range": [0, 1], "visible": False}, "yaxis": {"range": [0, 1], "visible": False}}


@pytest.mark.parametrize(
    ("trace", "least", "most"),
    [
        ({"type": "scatter", "mode": "lines", "x": [0, 1], "y": [0.5, 0.5], "line": {"color": "red", "width": 20}}, 0.03, 0.05),
        (
            {
                "type": "scatter",
                "mode": "lines",
                "x": [0, 1],
                "y": [0.5, 0.5],
                "fill": "tozeroy",
                "fillcolor": "red",
                "line": {"color": "red"},
            },
            0.49,
            0.52,
        ),
        ({"type": "bar", "x": [0.5], "y": [0.5], "width": 0.5, "marker": {"color": "red"}}, 0.24, 0.26),
        ({"type": "bar", "x": [0.5], "y": [0.25], "base": 0.25, "width": 1, "marker": {"color": "red"}}, 0.24, 0.26),
        ({"type": "bar", "orientation": "h", "y": [0.5], "x": [0.5], "width": 0.5, "marker": {"color": "red"}}, 0.24, 0.26),
        (
            {
                "type": "heatmap",
                "x": [0.25, 0.75],
                "y": [0.25, 0.75],
                "z": [[1, 0], [None, 0]],
                "colorscale": [[0, "blue"], [1, "red"]],
                "showscale": False,
            },
            0.24,
            0.26,
        ),
        (
            {
                "type": "heatmap",
                "x": [0.25, 0.75, 0.25],
                "y": [0.25, 0.75, 0.75],
                "z": [1.0, 0.0, float("nan")],
                "colorscale": [[0, "blue"], [1, "red"]],
                "showscale": False,
            },
            0.24,
            0.26,
        ),
    ],
)  # fmt: skip
def test_each_kind_of_trace_covers_what_it_should(trace: dict[str, Any], least: float, most: float) -> None:
    png = static_png(go.Figure([trace], {**SQUARE, **AXES}), width_px=400)
    assert pixels(png).shape == (400, 400, 3)
    assert least <= share(png, RED) <= most


def test_steps_go_where_plotly_goes() -> None:
    line = {"shape": "hv", "width": 1, "color": "red"}
    trace = {"type": "scatter", "mode": "lines", "x": [0, 0.5, 1], "y": [0.2, 0.8, 0.8], "line": line}
    picture = pixels(static_png(go.Figure([trace], {**SQUARE, **AXES}), width_px=400))
    is_red = (picture[..., 0] > 200) & (picture[..., 1] < 120)
    assert is_red[318:322, 100].any(), "0.2 up to 0.5"
    assert is_red[78:82, 300].any(), "0.8 from there on"
    assert not is_red[78:82, 100].any()


def test_stacked_bars_stand_on_each_other_and_shapes_are_drawn() -> None:
    bars = [
        {"type": "bar", "x": [0.5], "y": [0.25], "width": 1, "marker": {"color": colour}} for colour in ("red", "blue")
    ]
    shapes = [
        {"type": "rect", "x0": 0, "x1": 0.5, "y0": 0, "y1": 0.5, "xref": "paper", "yref": "paper", "fillcolor": "lime"}
    ]
    png = static_png(go.Figure(bars, {**SQUARE, **AXES, "barmode": "stack"}), width_px=400)
    assert share(png, RED) == pytest.approx(0.25, abs=0.01)
    assert share(png, BLUE) == pytest.approx(0.25, abs=0.01)
    png = static_png(go.Figure(bars, {**SQUARE, **AXES, "barmode": "stack", "shapes": shapes}), width_px=400)
    assert share(png, (0, 255, 0)) == pytest.approx(0.25, abs=0.02)


def test_a_logarithmic_axis_takes_exponents_as_its_range() -> None:
    axis = {"type": "log", "range": [0, 4], "visible": False}
    trace = {"type": "scatter", "mode": "lines", "x": [1, 10**4], "y": [100, 100], "line": {"color": "red", "width": 4}}
    picture = pixels(static_png(go.Figure([trace], {**SQUARE, "xaxis": axis, "yaxis": axis}), width_px=400))
    rows = np.nonzero((picture[..., 0] > 200) & (picture[..., 1] < 60))[0]
    assert abs(rows.mean() - 200) < 3


def test_text_has_no_markup_and_categories_legends_and_annotations_are_no_obstacle() -> None:
    figure = go.Figure(
        [
            {"type": "bar", "name": "<b>$a$</b>", "x": ["x_1", "$y", "z"], "y": [1, 2, 3], "text": ["1", "2", "3"]},
            {"type": "bar", "name": "b", "x": ["x_1", "$y", "z"], "y": [1, 2, 3], "offsetgroup": "other"},
        ],
        {
            "annotations": [{"text": "a<br>$b", "x": 1, "y": 2, "ax": 20, "ay": -30}],
            "xaxis": {"title": {"text": "<i>x</i>"}},
            "yaxis": {"ticksuffix": " s"},
        },
    )
    assert len(static_png(figure)) > 2000


@pytest.fixture
def every_figure(simulated_steps: list[StepRecord], tiny_steps: list[StepRecord]) -> dict[str, Any]:
    kv_maps = {name: steps[3].kv_map for name, steps in (("simulated", simulated_steps), ("tiny", tiny_steps))}
    points = [RooflinePoint("decode", 14e9, 14e9, 0.01), RooflinePoint("prefill", 14e12, 16e9, 0.1)]
    return {
        "timeline": figures.step_timeline(simulated_steps, upto=6),
        "timeline of tiny": figures.step_timeline(tiny_steps),
        "no steps": figures.step_timeline([]),
        **{name: figures.kv_block_map(kv_map, selected=1) for name, kv_map in kv_maps.items() if kv_map is not None},
        "roofline": figures.roofline({"HBM": 2e12}, {"tensor": 4e14}, points),
        "latency": figures.latency_distribution({"a": [0.1, 0.2], "b": [0.3]}, slo=0.2, log_x=True),
    }


def test_every_figure_of_the_lab_has_a_small_picture_of_the_right_size(every_figure: dict[str, Any]) -> None:
    assert len(every_figure) == 7
    for name, figure in every_figure.items():
        png = static_png(figure)
        assert pixels(png).shape == (figure.layout.height, 900, 3), name
        assert len(png) < 40_000, name
        colours = {tuple(pixel) for pixel in pixels(png).reshape(-1, 3)[::7]}
        assert len(colours) > (2 if name == "no steps" else 8), f"{name} is blank"


def test_an_unsupported_trace_is_named() -> None:
    with pytest.raises(ConfigError, match="a 'pie' trace has no static picture; use one of bar, heatmap"):
        static_png(go.Figure([{"type": "pie", "values": [1]}]))


def test_pictures_are_stacked_below_each_other() -> None:
    figure: Callable[[int], Any] = lambda height: go.Figure([{"type": "bar", "y": [1]}], {"height": height})  # noqa: E731
    both = stacked([static_png(figure(200)), static_png(figure(300))])
    assert pixels(both).shape == (500, 900, 3)


def test_widgets_do_not_import_matplotlib_until_a_picture_is_wanted() -> None:
    code = "import sys, infra_lab.widgets; sys.exit('matplotlib.figure' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
