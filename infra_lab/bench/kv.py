"""Paged against contiguous KV memory: the same requests, the same bytes, one setting changed.

Contiguous is paging with a block as large as the context: every request reserves the most that it may come to need. SmolLM2
where it is in the cache, otherwise the bundled model; on a GPU where there is one.
"""

import time
from collections.abc import Callable
from statistics import median

import torch

from infra_lab.bench.report import BenchReport, BenchRow, at_least
from infra_lab.engine.llm import LLM
from infra_lab.models.fetch import cached_model
from infra_lab.sampling_params import SamplingParams
from infra_lab.simulator.workload import RequestShape, lognormal_shapes

CONTEXT = 1024
POOL_TOKENS = 4 * CONTEXT
BLOCK_SIZE = 16


def run(*, quick: bool, say: Callable[[str], None]) -> BenchReport:
    """Measure both layouts in turn."""
    model = "smollm2-135m" if cached_model("smollm2-135m") is not None else "tiny"
    num_requests, repeats = (12, 1) if quick else (24, 3)
    trace = lognormal_shapes(num_requests, median_prompt=120, median_output=60, sigma=0.6, max_total=1000, seed=42)
    results: dict[int, list[tuple[float, float, int]]] = {CONTEXT: [], BLOCK_SIZE: []}
    for repeat in range(repeats + 1):
        for block_size, kept in results.items():
            say(f"{model}, blocks of {block_size}, run {repeat} of {repeats}" + (" (warm-up)" if repeat == 0 else ""))
            measured = _serve(model, block_size, trace)
            if repeat:
                kept.append(measured)
    contiguous, paged = ([median(column) for column in zip(*results[size], strict=True)] for size in results)
    peer = f"blocks of {CONTEXT}, the whole context"
    average = sum(shape.total_tokens for shape in trace) // num_requests
    note = f"{model}, {num_requests} requests of {average} tokens on average, KV memory {POOL_TOKENS} tokens"
    rows: list[BenchRow] = [
        at_least("output", paged[0], "tok/s", peer, contiguous[0], None, note),
        at_least(
            "slots in use", 100 * paged[1], "%", peer, 100 * contiguous[1], None, "of those reserved, over all steps"
        ),
        at_least("requests at once", paged[2], "", peer, contiguous[2], None, note),
    ]
    return BenchReport("kv", rows, versions={"torch": torch.__version__})


def _serve(model: str, block_size: int, trace: list[RequestShape]) -> tuple[float, float, int]:
    """Output tokens/s, share of reserved slots in use, most requests at once."""
    with LLM(
        model,
        block_size=block_size,
        num_kv_blocks=POOL_TOKENS // block_size,
        max_model_len=CONTEXT,
        enable_prefix_cache=False,
    ) as llm:
        prompts = [[97 + i] * shape.prompt_tokens for i, shape in enumerate(trace)]
        params = [SamplingParams(max_tokens=s.output_tokens, temperature=0.0, ignore_eos=True) for s in trace]
        begin = time.perf_counter()
        llm.generate(prompts, params)
        seconds = time.perf_counter() - begin
        llm.recorder.clear()
        llm.recorder.keep_kv_maps = True  # in a run of its own: keeping the maps takes time
        llm.generate(prompts, params)
        maps = [step.kv_map for step in llm.recorder.steps if step.kv_map is not None]
        in_use = sum(kv_map.stored_tokens for kv_map in maps) / sum(kv_map.reserved_tokens for kv_map in maps)
        return sum(s.output_tokens for s in trace) / seconds, in_use, max(s.num_running for s in llm.recorder.steps)
