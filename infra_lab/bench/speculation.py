"""Speculative decoding of one stream on SmolLM2-135M, beside the same engine decoding plainly: prompts where it pays and one
where it does not."""

import time
from collections.abc import Callable
from functools import partial

from infra_lab.bench.measure import medians
from infra_lab.bench.report import BenchRow, at_least
from infra_lab.engine.llm import LLM
from infra_lab.engine.speculation import Speculation
from infra_lab.sampling_params import SamplingParams

METHODS = {
    "n-gram": Speculation(method="ngram", num_tokens=6),
    "early exit": Speculation(method="early-exit", num_tokens=2),
}
_CODE = """def total(prices, discount):
    result = 0
    for price in prices:
        result = result + price * (1 - discount)
    return result
"""
PROMPTS = {
    "repeat code": f"Repeat this Python function, word for word:\n\n{_CODE}",
    "rename": f"Rewrite this Python function with `prices` renamed to `costs`:\n\n{_CODE}",
    "story": "Write a short story about a lighthouse keeper who finds a map.",
}
ASKED = "n-gram, repeat code"
NUM_TOKENS = 96


def speculation_rows(model: str, *, quick: bool, say: Callable[[str], None]) -> list[BenchRow]:
    """Measure tokens a second of greedy answers by every method, and how many proposals were kept."""
    say(f"speculative decoding, one stream, {NUM_TOKENS} tokens out")
    plain, *others = (
        LLM(model, device="cpu", speculation=speculation, max_model_len=1024, kv_cache_bytes=64 << 20)
        for speculation in (None, *METHODS.values())
    )
    engines = dict(zip(METHODS, others, strict=True))
    rows = []
    for topic, text in PROMPTS.items():
        prompt = plain.chat_token_ids([{"role": "user", "content": text}])
        speeds = medians([partial(_speed, llm, prompt) for llm in (plain, *others)], 2 if quick else 5)
        for (name, llm), speed in zip(engines.items(), speeds[1:], strict=True):
            is_same = _answer(llm, prompt) == _answer(plain, prompt)
            note = f"{_kept(llm, prompt)}; the tokens are {'the same' if is_same else 'others (rounding)'}"
            label = f"{name}, {topic}"
            rows.append(
                at_least(label, speed, "tok/s", "plain decoding", speeds[0], 1.0 if label == ASKED else None, note)
            )
    return rows


def _answer(llm: LLM, prompt: list[int]) -> list[int]:
    return llm.generate([prompt], SamplingParams(max_tokens=NUM_TOKENS, temperature=0.0, ignore_eos=True))[0].token_ids


def _speed(llm: LLM, prompt: list[int]) -> float:
    begin = time.perf_counter()
    return len(_answer(llm, prompt)) / (time.perf_counter() - begin)


def _kept(llm: LLM, prompt: list[int]) -> str:
    llm.recorder.clear()
    _answer(llm, prompt)
    steps = llm.recorder.steps
    drafts = [draft for step in steps for draft in step.drafts]
    kept, proposed = sum(draft.num_accepted for draft in drafts), sum(draft.num_proposed for draft in drafts)
    return f"{kept} of {proposed} proposals kept, {len(steps)} steps"
