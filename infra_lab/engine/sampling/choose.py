"""One token a row, greedy or drawn: by the sampling kernel where kernels are what runs, elsewhere by torch."""

import math
from collections.abc import Sequence

import torch

import kernels
from infra_lab.engine.sampling.draw import bounded_temperature, draw
from infra_lab.engine.sampling.uniform import Counter, number
from infra_lab.sampling_params import SamplingParams
from infra_lab.scheduler.plan import NO_TOKEN
from kernels.sampling import sample

KERNEL_VOCABULARY = 1 << 18
"""The kernel's sums of weights would overflow at so many tokens."""


def choose(logits: torch.Tensor, params: Sequence[SamplingParams], counters: Sequence[Counter]) -> list[int]:
    """Return a token id for every row of logits [S, V], of any floating dtype.

    NO_TOKEN where a row's largest logit is not finite, a NaN among them. A row's token depends on nothing but its logits, its
    parameters and its counter.
    """
    if kernels.launches_on(logits.device) and logits.shape[1] < KERNEL_VOCABULARY:
        return _launch(logits, params, counters)
    largest, greedy = logits.max(dim=1)  # NaN wins the maximum, so that it is seen
    ids = greedy.tolist()
    chosen = [ids[row] if math.isfinite(value) else NO_TOKEN for row, value in enumerate(largest.tolist())]
    rows = [row for row, token_id in enumerate(chosen) if token_id != NO_TOKEN and not params[row].is_greedy]
    if rows:
        drawing = logits if len(rows) == len(chosen) else logits[torch.tensor(rows, device=logits.device)]
        drawn = draw(drawing.float(), [params[row] for row in rows], [number(counters[row]) for row in rows])
        for row, token_id in zip(rows, drawn.tolist(), strict=True):
            chosen[row] = token_id
    return chosen


def _launch(logits: torch.Tensor, params: Sequence[SamplingParams], counters: Sequence[Counter]) -> list[int]:
    """Draw all rows in one launch, with one transfer there and one back."""
    vocab_size = logits.shape[1]
    by_row: list[tuple[torch.dtype, list[float]]] = [
        (torch.float32, [0.0 if p.is_greedy else bounded_temperature(p) for p in params]),
        (torch.int32, [min(p.top_k, vocab_size) for p in params]),
        (torch.float32, [p.top_p for p in params]),
        (torch.float32, [p.min_p for p in params]),
        (torch.int64, [place.seed for place in counters]),
        (torch.int64, [place.step for place in counters]),
    ]
    # Each column begins at a multiple of 16 bytes whatever the number of rows, or Triton would compile the kernel anew.
    host = torch.zeros(len(by_row), len(params) + len(params) % 2, dtype=torch.int64)
    for room, (dtype, values) in zip(host, by_row, strict=True):
        room.view(dtype)[: len(values)] = torch.tensor(values, dtype=dtype)
    moved = host.to(logits.device, non_blocking=True)
    columns = [room.view(dtype)[: len(params)] for room, (dtype, _) in zip(moved, by_row, strict=True)]
    chosen: list[int] = sample(logits, *columns).tolist()
    return chosen
