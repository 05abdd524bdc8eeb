"""Score a given text: the log-probability of each of its tokens, the raw material of perplexity."""

from collections.abc import Callable

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


@torch.inference_mode()
def token_logprobs(
    llm: LLM, token_ids: list[int], *, chunk_tokens: int = 64, after_chunk: AfterChunk | None = None
) -> torch.Tensor:
    """Return log p(token i | tokens before it) for i = 1 to T-1, [T-1] float32, computed through the paged cache.

    The text goes through the model in chunks, and `after_chunk` may change what a chunk has left in the cache before the
    next one reads it: that is how a compressed cache is judged. Within a chunk attention sees its own keys unchanged.

    Uses the first blocks of the KV memory, so the engine must be idle and its prefix cache is reset. Raises
    InvalidRequestError if requests are open, or if the text is shorter than two tokens or longer than context or memory.
    """
    memory, scheduler = llm.kv_memory, llm.core.scheduler
    num_tokens = len(token_ids)
    room = min(llm.resolved.max_model_len, len(memory.layers[0]) * memory.block_size)
    if scheduler.has_work:
        raise InvalidRequestError(f"{len(scheduler.requests)} requests are open; score a text when the engine is idle")
    if not 2 <= num_tokens <= room:
        raise InvalidRequestError(f"the text has {num_tokens} tokens; scoring needs 2 to {room} here")
    if chunk_tokens < 1:
        raise InvalidRequestError(f"chunk_tokens is {chunk_tokens}; it must be at least 1")
    scheduler.blocks.reset_prefix_cache()
    request = Request(token_ids=list(token_ids), request_id="score", params=SamplingParams())
    request.block_table = list(range(-(-num_tokens // memory.block_size)))
    pieces = []
    for start in range(0, num_tokens, chunk_tokens):
        size = min(chunk_tokens, num_tokens - start)
        plan = StepPlan(step=0, chunks=[Chunk(request, start, size)])
        prepared = prepare_step(
            plan, block_size=memory.block_size, dtype=llm.resolved.dtype, device=llm.resolved.device
        )
        inputs = prepared.inputs
        inputs.sample_rows = torch.arange(size, device=llm.resolved.device)
        logits = llm.model.forward(inputs, memory.layers)  # [size, V]
        targets = torch.tensor(token_ids[start + 1 : start + size + 1], device=logits.device)
        rows = torch.log_softmax(logits[: len(targets)].float(), dim=-1)
        pieces.append(rows.gather(1, targets.unsqueeze(1)).squeeze(1))
        if after_chunk is not None:
            after_chunk(memory, start, start + size)
    return torch.cat(pieces).cpu()
