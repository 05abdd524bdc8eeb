"""Score a given text: what the model thought of each of its tokens, the raw material of perplexity."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from infra_lab.engine.llm import LLM
from infra_lab.engine.step_input import prepare_step
from infra_lab.errors import InvalidRequestError
from infra_lab.paged_kv.kv_memory import KVMemory
from infra_lab.sampling_params import SamplingParams
from infra_lab.scheduler.plan import Chunk, StepPlan
from infra_lab.scheduler.request import Request

AfterChunk = Callable[[KVMemory, int, int], None]
"""Called with the KV memory and the range of slots, start to end, that a chunk has just filled."""


class ScoredChunk(NamedTuple):
    """What the model expects after some tokens of a text."""

    start: int
    """Position of the first of these tokens."""
    log_probs: torch.Tensor
    """[tokens, V] float32: row i is log p(any token | text up to position start + i)."""


def token_logprobs(
    llm: LLM, token_ids: list[int], *, chunk_tokens: int = 64, after_chunk: AfterChunk | None = None
) -> torch.Tensor:
    """Return log p(token i | tokens before it) for i = 1 to T-1, [T-1] float32; see `score_chunks`.

    Raises InvalidRequestError for what that refuses, and if the text is shorter than two tokens.
    """
    _check_room(llm, len(token_ids), at_least=2)
    pieces = []
    for start, log_probs in score_chunks(llm, token_ids, chunk_tokens=chunk_tokens, after_chunk=after_chunk):
        targets = torch.tensor(token_ids[start + 1 : start + len(log_probs) + 1], device=log_probs.device)
        pieces.append(log_probs[: len(targets)].gather(1, targets.unsqueeze(1)).squeeze(1))
    return torch.cat(pieces).cpu()


@torch.inference_mode()
def score_chunks(
    llm: LLM,
    token_ids: list[int],
    *,
    cached_tokens: int = 0,
    first_row: int = 0,
    chunk_tokens: int = 64,
    after_chunk: AfterChunk | None = None,
) -> Iterator[ScoredChunk]:
    """Yield the model's expectations after each token from position `first_row` on, computed through the paged cache.

    The text goes through the model in chunks, and `after_chunk` may change what a chunk has left in the cache before the
    next one reads it: that is how a compressed cache is judged. Within a chunk attention sees its own keys unchanged.

    cached_tokens: so many tokens at the beginning are still in the cache from the call before, for texts that begin alike.

    Uses the first blocks of the KV memory, so the engine must be idle and its prefix cache is reset. Raises
    InvalidRequestError if requests are open, or if the text is empty or longer than context or memory.
    """
    memory, scheduler = llm.kv_memory, llm.core.scheduler
    num_tokens = len(token_ids)
    _check_room(llm, num_tokens, at_least=1)
    if scheduler.has_work:
        raise InvalidRequestError(f"{len(scheduler.requests)} requests are open; score a text when the engine is idle")
    if chunk_tokens < 1:
        raise InvalidRequestError(f"chunk_tokens is {chunk_tokens}; it must be at least 1")
    with llm.core.without_overlap():  # the last step of requests that were aborted may still be computed
        scheduler.blocks.reset_prefix_cache()
    request = Request(token_ids=list(token_ids), request_id="score", params=SamplingParams())
    request.block_table = list(range(-(-num_tokens // memory.block_size)))
    for start in range(cached_tokens, num_tokens, chunk_tokens):
        size = min(chunk_tokens, num_tokens - start)
        plan = StepPlan(step=0, chunks=[Chunk(request, start, size)])
        prepared = prepare_step(
            plan, block_size=memory.block_size, dtype=llm.resolved.dtype, device=llm.resolved.device
        )
        skipped = min(max(first_row - start, 0), size - 1)
        prepared.inputs.sample_rows = torch.arange(skipped, size, device=llm.resolved.device)
        logits = llm.model.forward(prepared.inputs, memory.layers)  # [size - skipped, V]
        if start + size > first_row:
            yield ScoredChunk(start + skipped, torch.log_softmax(logits.float(), dim=-1))
        if after_chunk is not None:
            after_chunk(memory, start, start + size)


def _check_room(llm: LLM, num_tokens: int, *, at_least: int) -> None:
    room = min(llm.resolved.max_model_len, len(llm.kv_memory.layers[0]) * llm.kv_memory.block_size)
    if not at_least <= num_tokens <= room:
        raise InvalidRequestError(f"the text has {num_tokens} tokens; scoring needs {at_least} to {room} here")
