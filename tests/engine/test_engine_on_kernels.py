"""The engine on its Triton kernels writes what it writes on the references: on a GPU, or in the interpreter."""

import pytest
import torch

import kernels
from infra_lab import LLM, SamplingParams
from tests.kernels.conftest import DEVICE

TEXTS = ["def ", "The module defines a class", "x"]
GREEDY = SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True)


def written(mode: kernels.dispatch.Mode, **settings: object) -> list[list[int]]:
    with kernels.use(mode), LLM("tiny", dtype="float32", device=DEVICE.type, num_kv_blocks=64, **settings) as llm:
        return [output.token_ids for output in llm.generate(TEXTS, GREEDY)]


@pytest.mark.parametrize(
    "settings",
    [{}, {"block_size": 4}, {"max_batched_tokens": 8, "max_num_seqs": 4}],
    ids=["whole", "small blocks", "chunks"],
)
def test_the_tokens_are_those_of_the_references(settings: dict[str, object]) -> None:
    assert written("triton", **settings) == written("reference", **settings)


def test_attention_is_launched_and_not_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> torch.Tensor:
        raise AssertionError("the reference was called")

    monkeypatch.setattr(kernels, "paged_attention", refuse)
    assert len(written("triton")[0]) == GREEDY.max_tokens
