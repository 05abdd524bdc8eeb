"""Steps planned and handed out while the device computes, beside the same engine doing one thing after the other."""

import time
from collections.abc import Callable
from functools import partial

from infra_lab.bench.measure import medians
from infra_lab.bench.report import BenchRow, at_least
from infra_lab.engine.llm import LLM
from infra_lab.sampling_params import SamplingParams

NUM_STREAMS, NUM_TOKENS = 16, 64
PARAMS = SamplingParams(max_tokens=NUM_TOKENS, temperature=0.0, ignore_eos=True, stop=["\0"])
"""With a stop string that does not come, which texts are watched for, as a server's are."""


def overlap_rows(*models: str, quick: bool, say: Callable[[str], None]) -> list[BenchRow]:
    """Measure tokens a second of a batch on each model, on the GPU if there is one."""
    rows = []
    for model in models:
        say(f"overlap scheduling, {NUM_STREAMS} streams on {model}")
        plain, overlapped = (
            LLM(model, overlap_scheduling=wanted, max_model_len=256, kv_cache_bytes=256 << 20)
            for wanted in (False, True)
        )
        speeds = medians([partial(_speed, overlapped), partial(_speed, plain)], 2 if quick else 5)
        note = f"{_beside_computing(plain):.0%} of a step is planning and handing out, where nothing overlaps"
        label = f"overlap, {model}, {NUM_STREAMS} streams"
        rows.append(at_least(label, speeds[0], "tok/s", "one after the other", speeds[1], None, note))
        plain.close()
        overlapped.close()
    return rows


def _speed(llm: LLM) -> float:
    begin = time.perf_counter()
    llm.generate([[7 + stream] * 16 for stream in range(NUM_STREAMS)], PARAMS)
    return NUM_STREAMS * NUM_TOKENS / (time.perf_counter() - begin)


def _beside_computing(llm: LLM) -> float:
    """The share of the decode steps' time that overlap may hide."""
    steps = [step for step in llm.recorder.steps if step.num_decodes == step.num_tokens]
    hidden = sum(step.timings_s["schedule"] + step.timings_s["output"] for step in steps)
    return hidden / sum(step.duration_s for step in steps)
