"""What a change to a model costs: perplexity, distance to the unchanged model, answers to questions."""

from infra_lab.evaluation.compare import Comparison, ReferenceRun
from infra_lab.evaluation.multiple_choice import ChoiceResult, Question, answer_questions, make_questions
from infra_lab.evaluation.perplexity import Perplexity, evaluation_tokens, perplexity

__all__ = [
    "ChoiceResult",
    "Comparison",
    "Perplexity",
    "Question",
    "ReferenceRun",
    "answer_questions",
    "evaluation_tokens",
    "make_questions",
    "perplexity",
]
