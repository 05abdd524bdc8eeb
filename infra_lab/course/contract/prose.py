"""No figure stands in prose that a cell does not compute or a source does not give."""

import re
from collections.abc import Iterator

from infra_lab.course.contract.lesson import Lesson, Problem

_UNITS = (
    "%", "×", "x", "ns", "[µμu]s", "ms", "s", "seconds?", "minutes?", "hours?", "[kKMGT]i?B", "[kKMGTP]?FLOPS?", "TOPS",
    "[MG]Hz", "[km]?W", "watts?", "dollars?", "USD", "tokens? per second", "percent",
)  # fmt: skip
_FIGURE = re.compile(
    rf"(?:\$\s?\d(?:[\d,.]*\d)?|(?<![\w.-])~?\d(?:[\d,.]*\d)?\s?(?:{'|'.join(_UNITS)})(?![\w]))(?:/\w+)?"
)
_SOURCE = re.compile(
    r"\]\([^)]+\)"  # a link
    r"|https?://"
    r"|\([A-Z][^()]*\b(?:19|20)\d\d\b[^()]*\)"  # (Kwon et al. 2023)
    r"|\b\d(?:\.\d)?-\d\d\b"  # a claim of the ledger
)
_CODE = re.compile(r"```.*?```|~~~.*?~~~|`[^`\n]+`", re.DOTALL)
_FORMULA = re.compile(r"\$\$.+?\$\$|\$(?=[^\s\d])[^$\n]+?\$", re.DOTALL)


def prose_problems(lesson: Lesson) -> Iterator[Problem]:
    """Require a link, "(Author Year)" or a claim's id in each paragraph that gives a figure with a unit.

    The head (its minutes) is exempt, and so are code and formulas.
    """
    for number, cell in lesson.cells[1:]:
        if cell["cell_type"] != "markdown":
            continue
        for paragraph in re.split(r"\n\s*\n", _CODE.sub("", cell["source"])):
            figure = _FIGURE.search(_FORMULA.sub("", paragraph))
            if figure is not None and not _SOURCE.search(paragraph):
                yield Problem(
                    "sourced-figures",
                    f"`{figure[0].strip()}` has no source in its paragraph; compute it in a cell, or name a link, "
                    "(Author Year) or a claim",
                    number,
                )
