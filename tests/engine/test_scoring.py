"""Scoring a text through the paged cache gives the log-probabilities of one dense forward pass."""

import pytest
import torch
import transformers

from infra_lab import LLM, SamplingParams
from infra_lab.data import data_path
from infra_lab.engine.scoring import token_logprobs
from infra_lab.errors import InvalidRequestError
from infra_lab.paged_kv.kv_memory import KVMemory
from tests.engine.drained import drain

TEXT = "Return a list of the names in the current scope.  With an object as argument, return its attributes. " * 2


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM("tiny", dtype="float32", device="cpu", num_kv_blocks=32, block_size=8)


@pytest.mark.parametrize("chunk_tokens", [1, 7, 64, 1000])
def test_equal_to_transformers(llm: LLM, chunk_tokens: int) -> None:
    token_ids = llm.encode(TEXT)
    model = transformers.AutoModelForCausalLM.from_pretrained(data_path("tiny"), dtype=torch.float32)
    with torch.no_grad():
        rows = torch.log_softmax(model(torch.tensor([token_ids])).logits[0, :-1], dim=-1)
    expected = rows.gather(1, torch.tensor(token_ids[1:]).unsqueeze(1)).squeeze(1)
    assert (token_logprobs(llm, token_ids, chunk_tokens=chunk_tokens) - expected).abs().max() < 1e-3


def test_what_a_chunk_leaves_in_the_cache_is_what_the_next_one_reads(llm: LLM) -> None:
    token_ids = llm.encode(TEXT)

    def forget(memory: KVMemory, start: int, end: int) -> None:
        for layer in memory.layers:
            layer.flatten(0, 1)[start:end] = 0

    whole = token_logprobs(llm, token_ids, chunk_tokens=32)
    changed = token_logprobs(llm, token_ids, chunk_tokens=32, after_chunk=forget)
    assert torch.equal(whole[:31], changed[:31])
    assert (whole[40:] - changed[40:]).abs().max() > 0.1


def test_afterwards_the_engine_answers_as_before(llm: LLM) -> None:
    params = SamplingParams(max_tokens=8, temperature=0.0)
    before = llm.generate([TEXT], params)[0].token_ids
    token_logprobs(llm, llm.encode("x" * 200))
    again = llm.generate([TEXT], params)[0]
    assert again.token_ids == before
    assert again.metrics.num_cached_tokens == 0  # the blocks that scoring used are not taken for a cached prefix


def test_refusals(llm: LLM) -> None:
    for token_ids in ([1], [1] * 257):
        with pytest.raises(InvalidRequestError, match="2 to 256"):
            token_logprobs(llm, token_ids)
    with pytest.raises(InvalidRequestError, match="chunk_tokens is 0"):
        token_logprobs(llm, [1, 2], chunk_tokens=0)
    llm.core.add([1, 2], SamplingParams(max_tokens=2))
    with pytest.raises(InvalidRequestError, match="1 requests are open"):
        token_logprobs(llm, [1, 2])
    drain(llm)
