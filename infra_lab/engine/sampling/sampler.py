"""One token for every row of logits, as its request wants it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from infra_lab.engine.sampling.draw import draw
from infra_lab.engine.sampling.grammar import GrammarMasks
from infra_lab.engine.sampling.logprobs import token_logprobs
from infra_lab.engine.sampling.penalties import adjust, needs_adjusting
from infra_lab.engine.sampling.uniform import uniform
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
        largest, greedy = logits.max(dim=1)  # NaN wins the maximum, so that it is seen
        result = SampledTokens(greedy.tolist())
        for row, value in enumerate(largest.tolist()):
            if not math.isfinite(value):
                result.errors[row] = (
                    f"the largest logit is {value}: the model, a bias or the grammar has ruled out every token"
                )
                result.token_ids[row] = NO_TOKEN
        self._draw(logits, requests, result)
        for row, request in enumerate(requests):
            if request.params.logprobs is not None and row not in result.errors:
                result.logprobs[row] = token_logprobs(original[row], result.token_ids[row], request.params.logprobs)
        return result

    def _draw(self, logits: torch.Tensor, requests: Sequence[Request], result: SampledTokens) -> None:
        rows = [
            row for row, request in enumerate(requests) if not request.params.is_greedy and row not in result.errors
        ]
        if not rows:
            return
        chosen = logits if len(rows) == len(requests) else logits[torch.tensor(rows, device=logits.device)]
        drawing = [requests[row] for row in rows]
        uniforms = [uniform(r.seed, r.sample_index, len(r.token_ids) - r.num_prompt_tokens) for r in drawing]
        drawn = draw(chosen.float(), [request.params for request in drawing], uniforms)
        for row, token_id in zip(rows, drawn.tolist(), strict=True):
            result.token_ids[row] = token_id
