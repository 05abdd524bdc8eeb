"""What fewer bits cost and bring on SmolLM2-135M: method by bits, perplexity, KL, top-1, memory, tokens/s, all in one run.

The reference is the model's dequantized weights in float32. Every method is saved to a folder once and measured as it loads
from there. The text is the half of Python's help texts that nothing was calibrated on. Speeds are of one stream, in turn.
"""

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from infra_lab.bench import llama_cpp_peer
from infra_lab.bench.measure import in_fresh_process, medians
from infra_lab.bench.report import BenchReport, BenchRow, at_least, at_most
from infra_lab.engine.llm import LLM
from infra_lab.evaluation import (
    ChoiceResult,
    Comparison,
    ReferenceRun,
    answer_questions,
    evaluation_tokens,
    make_questions,
)
from infra_lab.models.fetch import resolve_model
from infra_lab.models.quantize_folder import quantize_to_folder
from infra_lab.sampling_params import SamplingParams

MODEL = "smollm2-135m"
GGUF, LLAMA_CPP = "gguf", "llama.cpp"
METHODS = (
    *("int8", "w8a8", "smoothquant-w8a8", "fp8", "fp8-static", "mixed-fp8-int4", "nf4", "mxfp4", "nvfp4"),
    *(f"{method}-int{bits}-g128" for bits in (4, 3) for method in ("rtn", "gptq", "awq")),
    "rtn-int4-g32",
)
KV_DTYPES = ("int8", "fp8")
"""Of the KV cache, with weights as they are."""
QUICK = ("int8", "rtn-int4-g128", "gptq-int4-g128")
ASKED = {
    **{"int8": 1.005, "fp8": 1.01, "smoothquant-w8a8": 1.015, "mixed-fp8-int4": 1.02},
    **{"gptq-int4-g128": 1.06, "awq-int4-g128": 1.06, "kv int8": 1.005},
}
"""Perplexity over the reference's."""
ASKED_LOSS = {
    "gptq-int4-g128": ("rtn-int4-g128", 1.0),
    "awq-int4-g128": ("rtn-int4-g128", 1.0),
    "gptq-int3-g128": ("rtn-int3-g128", 0.5),
    "smoothquant-w8a8": ("w8a8", 1.0),
}
"""Loss of perplexity over another method's."""
ASKED_SPEED = {"int8": 1.4, "gptq-int4-g128": 1.8}
NUM_TOKENS, NUM_QUESTIONS = 2048, 50


def run(*, quick: bool, say: Callable[[str], None]) -> BenchReport:
    """Measure all rows."""
    with tempfile.TemporaryDirectory() as folder:
        sources = {name: _quantized(name, Path(folder) / name, say) for name in (QUICK if quick else METHODS)}
        rows = [*_accuracy_rows(sources, quick, say), *_speed_rows(sources, quick, say), *_memory_rows(sources, say)]
    return BenchReport("quantization", rows, versions={"torch": torch.__version__})


def _quantized(name: str, folder: Path, say: Callable[[str], None]) -> str:
    begin = time.perf_counter()
    quantize_to_folder(MODEL, name, folder)
    say(f"{name}: quantized in {time.perf_counter() - begin:.0f} s")
    return str(folder)


def _engine(model: str, dtype: str = "float32", quantization: str | None = None, kv_dtype: str = "auto") -> LLM:
    return LLM(
        model,
        device="cpu",
        dtype=dtype,
        quantization=quantization,
        kv_dtype=kv_dtype,
        max_model_len=1024,
        enable_prefix_cache=False,
        kv_cache_bytes=64 << 20,
    )


def _accuracy_rows(sources: dict[str, str], quick: bool, say: Callable[[str], None]) -> list[BenchRow]:
    say("the reference")
    full = _engine(MODEL)
    text = evaluation_tokens(full.encode, NUM_TOKENS)
    tokens = text[: 512 if quick else NUM_TOKENS]
    questions = make_questions(text, 20 if quick else NUM_QUESTIONS)
    reference = ReferenceRun(full, tokens)
    answers = {"float32": answer_questions(full, questions)}
    full.close()
    found: dict[str, Comparison] = {}
    weight_bytes: dict[str, int] = {}
    engines = {name: partial(_engine, source) for name, source in sources.items()}
    engines[GGUF] = partial(_engine, MODEL, quantization=GGUF)
    kv_only = {f"kv {kv_dtype}": partial(_engine, MODEL, kv_dtype=kv_dtype) for kv_dtype in KV_DTYPES}
    for name, engine in {**engines, **kv_only}.items():
        llm = engine()
        found[name] = reference.compare(llm)
        if name not in kv_only:
            weight_bytes[name] = llm.model.resident_bytes
        answers[name] = answer_questions(llm, questions)
        llm.close()
        say(f"{name}: perplexity {found[name].perplexity_change:+.2%}")
    rows = [_perplexity_row(name, result, reference.perplexity) for name, result in found.items()]
    for name, (other, asked) in ASKED_LOSS.items():
        if name in found and other in found:
            loss, peer_loss = found[name].perplexity_change, found[other].perplexity_change
            rows.append(at_most(f"loss, {name}", 100 * loss, "%", other, 100 * peer_loss, asked))
    rows += [_choice_row(name, result, answers["float32"]) for name, result in answers.items()]
    bf16 = 2 * full.model.config.num_parameters
    rows += [
        at_most(f"weights, {name}", size / 1e6, "MB", "bfloat16", bf16 / 1e6, None)
        for name, size in weight_bytes.items()
    ]
    return rows


def _perplexity_row(name: str, found: Comparison, reference: float) -> BenchRow:
    note = (
        f"KL {found.kl:.4f} nats a token, top-1 agrees at {found.top1_agreement:.1%}, "
        f"perplexity {found.perplexity_change:+.2%} ± {found.change_error:.2%}"
    )
    return at_most(f"perplexity, {name}", found.perplexity, "", "float32", reference, ASKED.get(name), note)


def _choice_row(name: str, found: ChoiceResult, full: ChoiceResult) -> BenchRow:
    low, high = found.interval
    note = f"95 %: {low:.0%} to {high:.0%}; chance {found.chance:.0%}"
    return at_least(f"choices, {name}", 100 * found.accuracy, "%", "float32", 100 * full.accuracy, None, note)


def _speed_rows(sources: dict[str, str], quick: bool, say: Callable[[str], None]) -> list[BenchRow]:
    say("one stream, 16 tokens in, 32 out")
    engines = {name: _engine(source, "bfloat16") for name, source in sources.items()}
    engines[GGUF] = _engine(MODEL, "bfloat16", GGUF)
    engines = {"bfloat16": _engine(MODEL, "bfloat16"), **engines}
    num_tokens = 32

    def speed(llm: LLM) -> float:
        begin = time.perf_counter()
        llm.generate([[7] * 16], SamplingParams(max_tokens=num_tokens, temperature=0.0, ignore_eos=True))
        return num_tokens / (time.perf_counter() - begin)

    runs = {name: partial(speed, llm) for name, llm in engines.items()}
    if llama_cpp_peer.is_installed():
        peer = llama_cpp_peer.LlamaCppPeer(resolve_model(MODEL), max_model_len=1024)
        runs[LLAMA_CPP] = partial(peer.tokens_per_s, [7] * 16, num_tokens)
    else:
        say(llama_cpp_peer.HINT)
    found = dict(zip(runs, medians(list(runs.values()), 2 if quick else 3), strict=True))
    rows = [
        at_least(f"one stream, {name}", found[name], "tok/s", "bfloat16", found["bfloat16"], ASKED_SPEED.get(name))
        for name in list(engines)[1:]
    ]
    if LLAMA_CPP in found:
        rows.append(at_least("one stream, gguf", found[GGUF], "tok/s", LLAMA_CPP, found[LLAMA_CPP], 1.0))
    return rows


def _memory_rows(sources: dict[str, str], say: Callable[[str], None]) -> list[BenchRow]:
    say("memory, in fresh processes")
    before, full = _resident_bytes(None), _resident_bytes(MODEL)
    rows = []
    for name in ("int8", "gptq-int4-g128"):
        mine = (_resident_bytes(sources[name]) - before) / 1e6
        note = "resident, above a process that imported the engine; one answer of 16 tokens"
        rows.append(at_most(f"memory, {name}", mine, "MB", "bfloat16", (full - before) / 1e6, None, note))
    return rows


def _resident_bytes(model: str | None) -> int:
    """Memory resident in a fresh process that has answered once; None: that has imported the engine alone."""
    load = f"llm = LLM({model!r}, dtype='bfloat16', device='cpu', max_model_len=1024, kv_cache_bytes=64 << 20)"
    answer = "llm.generate([[7] * 16], SamplingParams(max_tokens=16, ignore_eos=True))"
    result = in_fresh_process(
        "import json, psutil; from infra_lab import LLM, SamplingParams\n"
        + ("" if model is None else f"{load}\n{answer}\n")
        + "print(json.dumps({'resident': psutil.Process().memory_info().rss}))"
    )
    return int(result["resident"])
