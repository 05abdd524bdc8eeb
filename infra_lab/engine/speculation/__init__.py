"""Speculative decoding: somebody cheap proposes a few tokens, the model checks them all in one step, and nothing changes.

    step n   model ─▶ x          proposer ─▶ a b c d
    step n+1 model over x a b c d ─▶ what it expects after each ─▶ a b kept, c not: y in its place     3 tokens in one step

A decode step waits for the weights to be read, so a few tokens more cost it little. Whether a proposal is kept is decided
so that what comes out has the distribution of plain decoding, exactly (`accept`). Proposals come from the text itself
(`ngram`), from a smaller model (`draft_model`), or from the first layers of the model (`draft_model` again).
"""

from infra_lab.engine.speculation.accept import check as check
from infra_lab.engine.speculation.config import Speculation as Speculation
from infra_lab.engine.speculation.config import speculation_of as speculation_of
from infra_lab.engine.speculation.proposal import Proposal as Proposal
from infra_lab.engine.speculation.proposal import Proposer as Proposer
