"""Proposals out of the text itself: what followed the latest tokens when they stood there before (Saxena 2023).

    … the cat sat on the mat . then the cat sat ▌        latest 3 tokens: "the cat sat"
        └──────────┘└────────────┘  └──────────┘         found before; proposed: "on the mat ."

It costs no model. It wins where an answer repeats its prompt (summaries, edits, code, quotes), and loses nothing but the
checking elsewhere: where nothing is found, nothing is proposed.
"""

from collections.abc import Sequence

from infra_lab.engine.speculation.proposal import Proposal
from infra_lab.scheduler.plan import StepPlan

LOOKED_AT = 4096
"""Of a longer text only the latest tokens are looked at, so that a step's search stays short."""


class NGramProposer:
    """Looks for the longest of the allowed n-grams first, and takes its latest occurrence."""

    def __init__(self, *, max_ngram: int, min_ngram: int) -> None:
        self._sizes = range(max_ngram, min_ngram - 1, -1)

    def propose(self, plan: StepPlan) -> dict[int, Proposal]:
        """See `Proposer`."""
        proposals = {}
        for position, room in plan.drafts.items():
            token_ids = plan.chunks[position].request.token_ids
            if found := continuation(token_ids[-LOOKED_AT:], room, self._sizes):
                proposals[position] = Proposal(found)
        return proposals

    def close(self) -> None:
        """Nothing is held."""


def continuation(token_ids: Sequence[int], num_tokens: int, sizes: Sequence[int]) -> list[int]:
    """Return up to num_tokens tokens that followed an earlier occurrence of the end of a text; empty: no such thing.

    sizes: of the n-grams to look for, the first that is found decides.
    """
    length = len(token_ids)
    for size in sizes:
        wanted = token_ids[length - size :]
        for end in range(length - 1, size - 1, -1):  # the latest occurrence first, not the end itself
            if token_ids[end - 1] == wanted[-1] and token_ids[end - size : end] == wanted:
                return list(token_ids[end : end + num_tokens])
    return []
