"""Log-probabilities of a chosen token and of the most probable ones."""

import torch

from infra_lab.scheduler.plan import TokenLogprobs


def token_logprobs(logits: torch.Tensor, token_id: int, num_top: int) -> TokenLogprobs:
    """Return them for one row of logits [V], by log-softmax in float32; rank 1 is the most probable token."""
    logprobs = torch.log_softmax(logits.float(), dim=0)  # [V]
    chosen = logprobs[token_id]
    rank = int((logprobs > chosen).sum().item()) + 1
    values, ids = logprobs.topk(num_top)
    return TokenLogprobs(token_id, chosen.item(), rank, list(zip(ids.tolist(), values.tolist(), strict=True)))
