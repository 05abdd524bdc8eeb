"""Logits changed before anything is drawn: bias, end-of-sequence masks, repetition penalties.

Each function works on the rows that ask for it and leaves the others alone.
"""

from collections.abc import Sequence

import torch

from infra_lab.scheduler.request import Request


def adjust(logits: torch.Tensor, requests: Sequence[Request]) -> None:
    """Apply bias, minimum length and penalties to float32 logits [S, V], in place, row by row as each request asks."""
    for row, request in enumerate(requests):
        params = request.params
        if params.logit_bias:
            ids = torch.tensor(list(params.logit_bias), device=logits.device)
            logits[row, ids] += torch.tensor(list(params.logit_bias.values()), device=logits.device)
        is_early = (
            len(request.token_ids) < request.min_total_tokens and params.grammar is None
        )  # else its mask sees to it
        if is_early and request.stop_token_ids:
            logits[row, torch.tensor(sorted(request.stop_token_ids), device=logits.device)] = float("-inf")
        if params.repetition_penalty != 1.0:
            _penalise_repetition(logits[row], request, params.repetition_penalty)
        if params.presence_penalty or params.frequency_penalty:
            output = torch.tensor(request.token_ids[request.num_prompt_tokens :], device=logits.device)
            if output.numel():
                seen, counts = torch.unique(output, return_counts=True)
                logits[row, seen] -= params.presence_penalty + params.frequency_penalty * counts


def _penalise_repetition(row: torch.Tensor, request: Request, penalty: float) -> None:
    """CTRL's penalty (Keskar 2019), over prompt and output: whatever the sign, the logit becomes less likely."""
    seen = torch.unique(torch.tensor(request.token_ids, device=row.device))
    values = row[seen]
    row[seen] = torch.where(values > 0, values / penalty, values * penalty)


def needs_adjusting(request: Request) -> bool:
    """Whether `adjust`, or the request's grammar, would change its row."""
    params = request.params
    return bool(
        params.logit_bias
        or params.grammar is not None
        or params.repetition_penalty != 1.0
        or params.presence_penalty
        or params.frequency_penalty
        or len(request.token_ids) < request.min_total_tokens
    )
