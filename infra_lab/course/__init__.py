"""What makes a notebook a lesson: its head, predictions, checks, hints, claims, and the grading.

A lesson needs these six names:

    from infra_lab.course import lesson, predict, claim, check, hint, reveal

Importing them loads neither torch nor ipywidgets: those come with the first call that needs them.
"""

from infra_lab.course.checks import check
from infra_lab.course.claims import claim
from infra_lab.course.hints import hint, reveal
from infra_lab.course.predictions import predict
from infra_lab.course.session import lesson

__all__ = ["check", "claim", "hint", "lesson", "predict", "reveal"]
