"""From knobs to ipywidgets: a labelled control for each, all of them reachable by keyboard."""

import math
from typing import Any

import ipywidgets as widgets

from infra_lab.widgets.knobs import Knob

_FEW = 4
"""Up to so many string choices lie side by side as buttons; more go into a drop-down list."""


def build_control(knob: Knob) -> Any:
    """Return the ipywidget of a knob; its `value` is the field's value.

    Sliders send every value on the way (`continuous_update`). No timer is needed to keep that in hand: ipywidgets' front end
    sends a widget's next value only after the kernel has reported that it is done with the one before, and then the newest;
    a computation that runs while the message is handled is never asked for values that are already out of date.
    """
    common = {
        "description": knob.label,
        "tooltip": knob.help or knob.label,
        "style": {"description_width": "initial"},
        "layout": {"width": "auto"},
    }
    if isinstance(knob.default, bool):
        return widgets.Checkbox(value=knob.default, indent=False, **common)
    if knob.unit:
        common["description"] = f"{knob.label} ({knob.unit})"
    if isinstance(knob.default, str):
        kind = widgets.ToggleButtons if len(knob.choices) <= _FEW else widgets.Dropdown
        return kind(options=list(knob.choices), value=knob.default, **common)
    if knob.choices:
        options = [(f"{choice:g}" if isinstance(choice, float) else str(choice), choice) for choice in knob.choices]
        return widgets.SelectionSlider(options=options, value=knob.default, continuous_update=True, **common)
    return _slider(knob, common)


def _slider(knob: Knob, common: dict[str, Any]) -> Any:
    low, high = knob.low, knob.high
    assert low is not None
    assert high is not None
    if knob.log:
        # Widened by a rounding error, so that both ends can be reached exactly; `read_control` takes it off again.
        start, end = math.log10(low) - 1e-12, math.log10(high) + 1e-12
        return widgets.FloatLogSlider(
            value=knob.default,
            base=10,
            min=start,
            max=end,
            step=knob.step or _log_step(start, math.log10(knob.default), end),
            readout_format=".3g",
            continuous_update=True,
            **common,
        )
    if isinstance(knob.default, int):
        return widgets.IntSlider(
            value=knob.default, min=int(low), max=int(high), step=int(knob.step or 1), continuous_update=True, **common
        )
    step = knob.step or _round_step((high - low) / 100)
    return widgets.FloatSlider(
        value=knob.default,
        min=low,
        max=high,
        step=step,
        readout_format=_decimals(step),
        continuous_update=True,
        **common,
    )


def read_control(knob: Knob, control: Any) -> Any:
    """Return a control's value as the field holds it; a log slider's end may be off by a rounding error."""
    value = control.value
    if knob.log and knob.low is not None and knob.high is not None:
        value = min(max(value, knob.low), knob.high)
    return knob.check(value)


def _log_step(start: float, default: float, end: float) -> float:
    """Return about a 200th of the way, such that the default lies on a step: otherwise the browser shows its neighbour."""
    step = (end - start) / 200
    return (default - start) / max(round((default - start) / step), 1) if default - start > step else step


def _round_step(step: float) -> float:
    """Round a step down to 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return float(next(factor for factor in (5, 2, 1) if factor * power <= step * (1 + 1e-9)) * power)


def _decimals(step: float) -> str:
    """Return the number format that shows a step and no more."""
    return f".{max(0, -math.floor(math.log10(step) + 1e-9))}f"
