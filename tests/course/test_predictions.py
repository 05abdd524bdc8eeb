"""Predictions: committed once, kept between kernels, and a notebook runs through without an answer."""

import math
import subprocess
import sys

import pytest

from infra_lab.course import predict
from infra_lab.errors import ConfigError


def slider():
    return predict("waste", "What share?", low=0, high=100, step=5, unit="%")


def test_a_guess_is_none_until_it_is_committed_and_comes_back() -> None:
    guess = slider()
    assert guess.value is None
    assert str(guess) == "What share? Your guess: not committed yet (0 to 100%)."
    guess.commit(40)
    again = slider()
    assert (again.value, again.first) == (40, 40)
    again.commit(60.0)
    assert (slider().value, slider().first) == (60.0, 40), "what was guessed first is not lost"
    assert str(slider()) == "What share? Your guess: 60% (0 to 100%)."


def test_the_widget_commits_locks_and_changes_its_mind() -> None:
    guess = slider()
    widget = guess.widget
    assert not widget.control.disabled
    widget.control.value = 35
    assert guess.value is None, "moving the slider commits nothing"
    widget.commit.click()
    assert guess.value == 35
    assert widget.control.disabled
    assert widget.commit.disabled
    assert "committed: 35%" in widget.status.value
    widget.change.click()
    assert not widget.control.disabled
    widget.control.value = 70
    assert guess.value == 35
    widget.commit.click()
    assert (guess.value, guess.first) == (70, 35)
    guess.commit(10)
    assert widget.control.value == 10
    assert widget.control.disabled


def test_choices() -> None:
    guess = predict("bound", "What binds it?", choices=("memory", "compute"))
    widget = guess.widget
    assert widget.control.value is None, "no choice is suggested"
    assert widget.commit.disabled
    widget.control.value = "memory"
    widget.commit.click()
    assert guess.value == "memory"
    assert predict("bound", "What binds it?", choices=("memory", "compute")).widget.control.disabled
    assert predict("bound", "Other choices now?", choices=("a", "b")).value is None, "an answer to another question"


def test_it_shows_a_widget_and_says_the_same_in_text() -> None:
    bundle = slider()._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert bundle["text/plain"] == "What share? Your guess: not committed yet (0 to 100%)."


@pytest.mark.parametrize("value", [-1, 101, math.nan, math.inf, "40", None, True])
def test_a_guess_outside_the_scale_is_refused(value: object) -> None:
    guess = slider()
    with pytest.raises(ConfigError, match="expected 0 to 100%"):
        guess.commit(value)
    assert slider().value is None


@pytest.mark.parametrize(
    "options", [{"low": 1, "high": 1}, {"step": 0}, {"step": 200}, {"choices": ("a",)}, {"choices": ("a", "a")}]
)
def test_an_empty_scale_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"predict\('x'\)"):
        predict("x", "?", **options)


def test_importing_the_course_loads_neither_widgets_nor_torch() -> None:
    code = (
        "import sys, infra_lab.course, infra_lab.course.cli\n"
        "print([m for m in ('ipywidgets', 'torch', 'IPython', 'nbformat', 'papermill', 'matplotlib') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
