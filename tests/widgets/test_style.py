"""Colours that everybody can tell apart, and a style sheet that stays within the panels."""

import itertools
import re

import pytest
from matplotlib.colors import to_rgb

from infra_lab.widgets import style, theme


def test_a_request_keeps_its_colour_and_its_samples_have_others() -> None:
    assert theme.request_colour("request-3") == theme.request_colour("request-11") == theme.PALETTE[3]
    assert len({theme.request_colour(f"request-1{sample}") for sample in ("", "#1", "#2")}) == 3
    assert theme.request_colour("chat") == theme.request_colour("chat")
    assert [theme.short_name(name) for name in ("request-12", "request-1#2", "a long name")] == [
        "r12",
        "r1#2",
        "a long",
    ]


def strays(css: str) -> list[str]:
    """Selectors that reach outside of a panel."""
    flat = re.sub(r"@container[^{]*\{((?:[^{}]*\{[^{}]*\})*)\s*\}", r"\1", css)
    selectors = [rule.strip() for rule in re.findall(r"([^{}]+)\{", flat)]
    assert len(selectors) > 20
    return [
        selector
        for rule in selectors
        for selector in re.split(r",(?![^(]*\))", rule)
        if not selector.strip().startswith(f".{style.ROOT_CLASS}")
    ]


def test_no_rule_reaches_outside_of_a_panel() -> None:
    assert strays(style.CSS) == []
    assert strays(style.CSS + "\ntext { fill: red; }") == ["text"]
    assert style.CSS.count("{") == style.CSS.count("}")


def test_the_style_sheet_uses_the_themes_colours_only() -> None:
    properties = re.findall(r"(?:color|background|fill|stroke|border): ([^;]+);", style.CSS)
    assert len(properties) > 20
    assert all("var(--jp-" in value or value in ("transparent", "inherit") for value in properties)


@pytest.mark.parametrize("colour", [theme.INK, theme.MUTED, theme.SURFACE, theme.ACCENT])
def test_the_placeholders_are_mapped_and_no_colour_of_a_state_is_one(colour: str) -> None:
    red, green, blue = (round(255 * part) for part in to_rgb(colour))
    assert f'[style*="fill: rgb({red}, {green}, {blue})"]' in style.CSS
    assert colour not in theme.PALETTE


def test_the_placeholders_can_be_told_from_each_other() -> None:
    for a, b in itertools.combinations([theme.INK, theme.MUTED, theme.SURFACE, theme.ACCENT], 2):
        assert a != b
