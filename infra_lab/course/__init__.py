"""What makes a notebook a lesson: its head, predictions, checks, hints, claims, and the grading."""
