"""Grading of submitted exercise notebooks: find, put the checks back, run apart, score, write a table.

    submissions.py   whose notebook it is, and of which section
    assemble.py      the student's answers between the pristine checks
    supervise.py     one worker process a notebook: temporary folder, limits, an end
    worker.py        papermill with an engine (engine.py) that goes on after an error
    score.py         what the outputs of the check cells are worth
    run.py           all of it, several at a time

It keeps honest mistakes (endless loops, floods of output, lost cells, edited checks) from harming the grading. It is no
sandbox: the code runs with your rights, so grade code of people you do not trust inside a container. And it is no proof
of honesty: checks and answers share a kernel, so an answer can rewrite the package in memory, or read the solution. That
shows in its source, and in nothing else.
"""

from infra_lab.course.grading.run import GradingLimits, grade
from infra_lab.course.grading.score import GradeRow

__all__ = ["GradeRow", "GradingLimits", "grade"]
