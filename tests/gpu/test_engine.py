"""The same engine on a GPU: tokens equal to the CPU's in float32, however requests are batched."""

from typing import Any

import pytest
import torch

from infra_lab import LLM, SamplingParams

TEXTS = ["The built-in function len returns", "class", "import os\n", "Raises ValueError if the argument is not " * 6]


@pytest.mark.parametrize(
    "settings", [{}, {"max_batched_tokens": 16, "max_num_seqs": 4}, {"num_kv_blocks": 60}], ids=str
)
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_tokens_equal_the_cpus(settings: dict[str, Any], temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    params = SamplingParams(max_tokens=16, temperature=temperature, seed=5, ignore_eos=True)
    cpu = LLM("tiny", dtype="float32", device="cpu", kv_cache_bytes=32 << 20)
    expected = [cpu.generate(text, params)[0].token_ids for text in TEXTS]
    gpu = LLM("tiny", dtype="float32", device="cuda", **{"kv_cache_bytes": 32 << 20, "block_size": 8, **settings})
    assert [output.token_ids for output in gpu.generate(TEXTS, params)] == expected
    blocks = gpu.core.scheduler.blocks
    assert blocks.num_free_blocks == blocks.num_blocks


def test_bfloat16_and_int8_run_and_the_pool_takes_the_rest_of_the_memory() -> None:
    for quantization in (None, "int8"):
        llm = LLM("tiny", device="cuda", dtype="bfloat16", quantization=quantization, gpu_memory_fraction=0.3)
        free_bytes, total_bytes = torch.cuda.mem_get_info()
        assert total_bytes - free_bytes <= 0.35 * total_bytes
        assert len(llm.generate("def", SamplingParams(max_tokens=8, ignore_eos=True))[0].token_ids) == 8
        llm.close()
        torch.cuda.empty_cache()
