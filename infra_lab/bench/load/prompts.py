"""Prompts of a wanted length for a model whose tokenizer is not at hand.

They are random common words. How many tokens a word is, is asked of the server: it counts a text of all words once, and of
all words twice; the difference is what a word takes on average, the rest is what the template adds.
"""

import random
from typing import NamedTuple

from infra_lab.bench.load.workload import PlannedRequest

_WORDS = """
time year people way day man thing woman life child world school state family student group country problem hand part place
case week company system program question work number night point home water room mother area money story fact month lot
right study book eye job word business issue side kind head house service friend father power hour game line end member law
"""
WORDS = tuple(_WORDS.split())
"""Each a token of its own in most vocabularies."""


class TokenScale(NamedTuple):
    """What words are in tokens."""

    tokens_per_word: float = 1.0
    overhead_tokens: float = 0.0
    """What the chat template, or a bos token, adds to every prompt."""
    is_measured: bool = False
    """Whether the server has counted; otherwise a word is taken for a token."""


def probe_text(repeats: int) -> str:
    """Every word, so many times."""
    return " ".join(WORDS * repeats)


def scale_from_probes(once_tokens: int, twice_tokens: int) -> TokenScale:
    """From the token counts of `probe_text(1)` and `probe_text(2)`; an unbelievable count gives the default scale."""
    per_word = (twice_tokens - once_tokens) / len(WORDS)
    if per_word <= 0:
        return TokenScale()
    return TokenScale(per_word, max(0.0, once_tokens - per_word * len(WORDS)), True)


def write_prompt(request: PlannedRequest, scale: TokenScale, seed: int = 0) -> str:
    """Return a text of about `prompt_tokens`; its first `shared_tokens` are those of all requests with its prefix.

    What the template adds counts as shared, for it is. A prompt has at least one word.
    """
    num_words = max(1, round((request.shape.prompt_tokens - scale.overhead_tokens) / scale.tokens_per_word))
    num_shared = round(max(0.0, request.shared_tokens - scale.overhead_tokens) / scale.tokens_per_word)
    num_shared = min(num_shared, num_words)
    shared = random.Random(f"prefix {seed} {request.prefix}").choices(WORDS, k=num_shared)
    own = random.Random(f"prompt {seed} {request.index}").choices(WORDS, k=num_words - num_shared)
    return " ".join(shared + own)
