"""One token for every row of logits, as its request wants it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from infra_lab.engine.sampling.choose import choose
from infra_lab.engine.sampling.grammar import GrammarMasks
from infra_lab.engine.sampling.logprobs import token_logprobs
from infra_lab.engine.sampling.penalties import adjust, needs_adjusting
from infra_lab.engine.sampling.uniform import counter
from infra_lab.scheduler.plan import NO_TOKEN, TokenLogprobs
from infra_lab.scheduler.request import Request


@dataclass(slots=True)
class SampledTokens:
    """Results by row of the logits."""

    token_ids: list[int]
    """NO_TOKEN where nothing could be sampled."""
    logprobs: dict[int, TokenLogprobs] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)


class Sampler:
    """Samples from logits [S, V] of any floating dtype, one row a request.

    Between calls it keeps only what follows from the requests: where in their grammars they stand.

    A batch in which all rows are greedy and ask for nothing else costs one pass for the maximum. Log-probabilities are
    those of the model's own distribution, before bias, penalties, grammar and temperature, as in vLLM.
    """

    def __init__(self) -> None:
        self._grammar_masks = GrammarMasks()

    def sample(self, logits: torch.Tensor, requests: Sequence[Request]) -> SampledTokens:
        """Choose a token for every row. A row that has no finite maximum becomes an error of its request alone."""
        original = logits
        if any(needs_adjusting(request) for request in requests):
            logits = logits.float().clone() if logits.dtype is torch.float32 else logits.float()
            adjust(logits, requests)
            self._grammar_masks.apply(logits, requests)
        counters = [counter(r.seed, r.sample_index, r.num_output_tokens) for r in requests]
        result = SampledTokens(choose(logits, [request.params for request in requests], counters))
        for row, token_id in enumerate(result.token_ids):
            num_logprobs = requests[row].params.logprobs
            if token_id == NO_TOKEN:
                result.errors[row] = (
                    f"the largest logit is {logits[row].max().item()}: the model, a bias or the grammar has ruled out every "
                    "token"
                )
            elif num_logprobs is not None:
                result.logprobs[row] = token_logprobs(original[row], token_id, num_logprobs)
        return result
