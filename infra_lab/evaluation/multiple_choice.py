"""A multiple-choice test made of a text: which of four continuations is the one that stands there?

    … the default is to compare by identity. The ▸  A  default behavior for equality     ← the text's own
                                                    B  which has been assigned to
                                                    C  of the module is executed
                                                    D  is not raised even if

Distractors are pieces of the same text and the same length, from elsewhere. An answer is the continuation to which the
model gives the highest likelihood; all have the same number of tokens, so nothing needs to be normalised. It needs no
labels and no skill in following instructions, which a small model lacks; its chance level is known.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from infra_lab.engine.llm import LLM
from infra_lab.engine.scoring import score_chunks
from infra_lab.errors import ConfigError
from infra_lab.evaluation.perplexity import Progress

NUM_OPTIONS = 4
PROMPT_TOKENS, OPTION_TOKENS = 24, 6


class Question(NamedTuple):
    """A prompt and its continuations, as token ids."""

    prompt: list[int]
    options: list[list[int]]
    answer: int
    """Index of the text's own."""


def make_questions(
    token_ids: Sequence[int],
    num_questions: int,
    *,
    prompt_tokens: int = PROMPT_TOKENS,
    option_tokens: int = OPTION_TOKENS,
    seed: int = 0,
) -> list[Question]:
    """Make questions of pieces of a text that do not overlap; the same seed makes the same ones.

    Raises ConfigError if the text is too short for so many.
    """
    length = prompt_tokens + option_tokens
    num_pieces = len(token_ids) // length
    if num_questions < 1 or num_pieces < max(num_questions, NUM_OPTIONS):
        raise ConfigError(
            f"{num_questions} questions of {length} tokens; the text of {len(token_ids):,} has room for {num_pieces}, and "
            f"distractors need {NUM_OPTIONS}; give a longer text"
        )
    rng = random.Random(seed)
    pieces = [list(token_ids[i * length : (i + 1) * length]) for i in range(num_pieces)]
    questions = []
    for index in rng.sample(range(num_pieces), num_questions):
        prompt, own = pieces[index][:prompt_tokens], pieces[index][prompt_tokens:]
        others = [piece[prompt_tokens:] for i, piece in enumerate(pieces) if i != index]
        distractors = rng.sample([other for other in others if other != own], NUM_OPTIONS - 1)
        answer = rng.randrange(NUM_OPTIONS)
        questions.append(Question(prompt, [*distractors[:answer], own, *distractors[answer:]], answer))
    return questions


@dataclass(frozen=True, slots=True)
class ChoiceResult:
    """How many were right, and how sure that makes us of the share."""

    correct: list[bool]

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return sum(self.correct) / len(self.correct)

    @property
    def chance(self) -> float:
        """What guessing gives."""
        return 1 / NUM_OPTIONS

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of the accuracy (Wilson 1927), which stays within 0 … 1."""
        z, n, p = 1.96, len(self.correct), self.accuracy
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return centre - half, centre + half


def answer_questions(llm: LLM, questions: Sequence[Question], *, progress: Progress | None = None) -> ChoiceResult:
    """Let a model answer: the likelihood of each continuation. The engine must be idle."""
    correct = []
    for done, question in enumerate(questions, 1):
        scores = option_log_likelihoods(llm, question)
        correct.append(max(range(len(scores)), key=scores.__getitem__) == question.answer)
        if progress is not None:
            progress(done, len(questions))
    return ChoiceResult(correct)


def option_log_likelihoods(llm: LLM, question: Question) -> list[float]:
    """Return log p(option | prompt) for each option; the prompt goes through the model once."""
    num_prompt = len(question.prompt)
    [(_, after_prompt)] = score_chunks(llm, question.prompt, first_row=num_prompt - 1, chunk_tokens=max(num_prompt, 1))
    scores = []
    for option in question.options:
        score = float(after_prompt[0, option[0]])
        if len(option) > 1:
            text = question.prompt + option[:-1]  # the last token is only predicted
            [(_, rows)] = score_chunks(
                llm, text, cached_tokens=num_prompt, first_row=num_prompt, chunk_tokens=len(option)
            )
            score += sum(float(rows[i, token]) for i, token in enumerate(option[1:]))
        scores.append(score)
    return scores
