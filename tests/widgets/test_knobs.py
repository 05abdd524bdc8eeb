"""Knobs: which control each becomes, and which definitions are refused."""

import itertools
from dataclasses import dataclass, make_dataclass
from typing import Any

import ipywidgets as widgets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra_lab.errors import ConfigError
from infra_lab.widgets.controls import build_control, read_control
from infra_lab.widgets.knobs import Knob, knob, knobs_of


def one(field: Any, kind: type = object) -> Knob:
    return knobs_of(make_dataclass("Params", [("thing", kind, field)]))[0]


@pytest.mark.parametrize(
    ("field", "kind"),
    [
        (knob(8, low=1, high=32), widgets.IntSlider),
        (knob(0.5, low=0.0, high=1.0), widgets.FloatSlider),
        (knob(0.5, low=0.01, high=10.0, log=True), widgets.FloatLogSlider),
        (knob(16, choices=(1, 2, 4, 8, 16)), widgets.SelectionSlider),
        (knob(True), widgets.Checkbox),
        (knob("a", choices=("a", "b")), widgets.ToggleButtons),
        (knob("a", choices=tuple("abcdefg")), widgets.Dropdown),
    ],
)
def test_each_kind_of_knob_becomes_its_control_and_reads_back_the_default(field: Any, kind: type) -> None:
    made = one(field)
    control = build_control(made)
    assert type(control) is kind
    assert read_control(made, control) == made.default
    assert type(read_control(made, control)) is type(made.default)


def test_label_unit_and_help_are_on_the_control() -> None:
    control = build_control(one(knob(16, choices=(8, 16), label="Block size", unit="tokens", help="Slots of a block")))
    assert control.description == "Block size (tokens)"
    assert control.tooltip == "Slots of a block"
    assert control.style.description_width == "initial"
    assert build_control(one(knob(1, low=0, high=2))).description == "Thing"


@pytest.mark.parametrize(
    ("field", "message"),
    [
        (knob(8), "thing is a number without a range"),
        (knob(8, low=1), "thing is a number without a range"),
        (knob(8, low=9, high=9), "low must be less than high"),
        (knob(8, low=10, high=20), "the default of thing is 8; it must be from 10 to 20"),
        (knob(8, choices=(1, 2)), "the default of thing is 8; choose one of 1, 2"),
        (knob(8, low=1, high=9, choices=(8,)), "both choices and a range"),
        (knob(8, choices=(8, 8)), "offers a choice twice"),
        (knob(8, low=1, high=9, log=True), "log=True, which needs a float"),
        (knob(1.0, low=0.0, high=9.0, log=True), "low > 0"),
        (knob(1.0, low=0.0, high=9.0, step=0.0), "it must be positive"),
        (knob("a"), "thing is a string; give the choices"),
        (knob(None), "a knob turns a bool"),
        (knob(float("nan"), low=0.0, high=1.0), "thing is nan"),
    ],
)
def test_a_bad_definition_names_its_field(field: Any, message: str) -> None:
    with pytest.raises(ConfigError, match="thing") as caught:
        one(field)
    assert message in str(caught.value)


def test_a_params_type_without_knobs_is_refused() -> None:
    @dataclass(frozen=True)
    class Empty:
        count: int = 3

    with pytest.raises(ConfigError, match="no field made by knob"):
        knobs_of(Empty)
    with pytest.raises(ConfigError, match="no dataclass"):
        knobs_of(int)


@given(st.floats(1e-9, 1e15), st.floats(1e-9, 1e15), st.floats(0, 1))
def test_a_log_slider_reads_back_what_it_is_set_to_and_reaches_both_ends(a: float, b: float, share: float) -> None:
    low, high = sorted((a, b))
    if high / low < 1.001:
        return
    default = min(max(low * (high / low) ** share, low), high)
    made = one(knob(default, low=low, high=high, log=True))
    control = build_control(made)
    for value in (default, low, high):
        control.value = value
        assert read_control(made, control) == pytest.approx(value, rel=1e-12)


@given(st.sampled_from([0.3, 0.5, 2.0, 7.77]))
def test_a_log_slider_has_a_step_at_its_default(default: float) -> None:
    control = build_control(one(knob(default, low=0.01, high=10.0, log=True)))
    steps = itertools.count()
    nearest = min(itertools.takewhile(lambda e: e < 1.1, (control.min + next(steps) * control.step for _ in range(10**4))),
                  key=lambda exponent: abs(10**exponent - default))  # fmt: skip
    assert 10**nearest == pytest.approx(default, rel=1e-9)
