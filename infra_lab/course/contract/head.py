"""The first cell says what the lesson is."""

import re
from collections.abc import Iterator

from infra_lab.course.contract.lesson import Lesson, Problem


def head_problems(lesson: Lesson) -> Iterator[Problem]:
    """Require number and title, Chinese title, "After this you can", minutes, tier and "Before" in the first cell."""
    entry = lesson.section
    first = lesson.notebook["cells"][0] if lesson.notebook["cells"] else {"cell_type": "", "source": ""}
    if first["cell_type"] != "markdown":
        yield Problem("head", f"the first cell must be Markdown and begin with `# {entry.number} {entry.title}`", 1)
        return
    text = re.sub(r"[*_]{1,3}", "", first["source"])
    wanted = {
        "title": (rf"\A# {re.escape(entry.number)} \S", f"must begin with `# {entry.number} ` and the title"),
        "outcome": (r"After this you can \w", "must say what the learner can do: a sentence `After this you can ...`"),
        "minutes": (r"\d+ ?min", "must say how long it takes, such as `60 minutes`"),
        "tier": (r"\bCPU\b", "must say what it runs on: `CPU`, or `CPU, GPU adds ...`"),
        "before": (r"\bBefore\b", "must say what to have done before: `Before: ...`"),
    }
    if not lesson.is_first:  # the chapter has no such section
        wanted["chinese-title"] = (re.escape(entry.chinese), f"must have the Chinese title, {entry.chinese}")
    for name, (pattern, message) in wanted.items():
        if not re.search(pattern, text):
            yield Problem(f"head-{name}", f"the head {message}", 1)
