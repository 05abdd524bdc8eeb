"""Decoding on a GPU with and without CUDA graphs, beside what the memory's bandwidth allows."""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial

import torch

from infra_lab.bench.measure import medians
from infra_lab.bench.report import BenchRow, at_least
from infra_lab.engine.config import EngineConfig
from infra_lab.engine.llm import LLM
from infra_lab.hardware.probes import measure_ceilings
from infra_lab.sampling_params import SamplingParams

PROMPT_TOKENS, NUM_TOKENS = 16, 128
BATCHES = (1, 16, 64)


def decode_graph_rows(model: str, *, quick: bool, say: Callable[[str], None]) -> list[BenchRow]:
    """Measure both, interleaved, for some batch sizes; without a GPU there are no rows."""
    if not torch.cuda.is_available():
        return []
    config = EngineConfig(model=model, device="cuda", dtype="bfloat16", max_model_len=2048, kv_cache_bytes=1 << 30)
    settings = {**asdict(config), "enable_prefix_cache": False, "max_batched_tokens": 2048}
    say("starting the engine with CUDA graphs, and without")
    graphs, launches = (LLM(**{**settings, "cuda_graphs": wanted}) for wanted in (True, False))
    ceiling = measure_ceilings("cuda", quick=True).read_bytes_per_s
    rows = []
    for batch in BATCHES:
        say(f"decode, {batch} sequences on the GPU")
        speeds = medians([partial(_speed, graphs, batch), partial(_speed, launches, batch)], 2 if quick else 5)
        read = graphs.weight_bytes / batch + _kv_bytes(graphs)  # bytes a token
        note = f"{PROMPT_TOKENS} tokens in, {NUM_TOKENS} out, greedy, bf16; only steps without a prefill"
        rows.append(at_least(f"GPU decode of {batch}, graphs", speeds[0], "tok/s", "launches", speeds[1], None, note))
        rows.append(at_least("  against bandwidth", speeds[0], "tok/s", "weights + KV", ceiling / read, None, note))
    graphs.close()
    launches.close()
    return rows


def _speed(llm: LLM, batch: int) -> float:
    """Tokens per second of the steps in which all sequences decode, and nothing else happens."""
    begin_s = llm.core.clock.now()
    prompts = [[7 + i] * PROMPT_TOKENS for i in range(batch)]
    llm.generate(prompts, SamplingParams(max_tokens=NUM_TOKENS, temperature=0.0, ignore_eos=True))
    steps = [s for s in llm.recorder.steps if s.start_s >= begin_s and s.num_decodes == s.num_tokens == batch]
    return batch * len(steps) / sum(step.duration_s for step in steps)


def _kv_bytes(llm: LLM) -> float:
    """Bytes of keys and values that a token reads, at the middle of the run."""
    return llm.model.config.kv_bytes_per_token(llm.resolved.dtype.itemsize) * (PROMPT_TOKENS + NUM_TOKENS / 2)
