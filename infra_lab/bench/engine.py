"""The engine on SmolLM2-135M against transformers on the same weights, on a CPU.

transformers is measured in bfloat16 and float32, and each row compares with whichever was faster. Ours runs with dense weights
of the type that is this machine's default, and with weight-only 8 and 4 bits; the row says which.
"""

import random
import sys
import time
from collections.abc import Callable

import torch

from infra_lab.bench.decode_graphs import decode_graph_rows
from infra_lab.bench.measure import in_fresh_process, medians, time_to_first_output_s
from infra_lab.bench.overlap import overlap_rows
from infra_lab.bench.peers import TransformersPeer
from infra_lab.bench.report import BenchReport, BenchRow, at_least, at_most
from infra_lab.bench.scheduler import scheduler_rows
from infra_lab.bench.speculation import speculation_rows
from infra_lab.engine.llm import LLM
from infra_lab.hardware.probes import measure_ceilings
from infra_lab.models.fetch import resolve_model
from infra_lab.sampling_params import SamplingParams

MODEL = "smollm2-135m"
DENSE = "dense"
SCHEMES: dict[str, str | None] = {DENSE: None, "int8": "int8", "int4": "rtn-int4-g32"}


def run(*, quick: bool, say: Callable[[str], None]) -> BenchReport:
    """Measure all rows."""
    path = resolve_model(MODEL)
    repeats = 2 if quick else 5
    say("loading the peers")
    peers = {
        str(dtype).removeprefix("torch."): TransformersPeer(path, dtype) for dtype in (torch.bfloat16, torch.float32)
    }
    engines = {
        name: LLM(MODEL, quantization=scheme, max_model_len=2048, enable_prefix_cache=False, kv_cache_bytes=128 << 20)
        for name, scheme in SCHEMES.items()
    }
    rows = [
        *_one_stream(engines, peers, repeats, say),
        *_mixed_batch(engines, peers, repeats, say),
        *_prefill(engines, peers, repeats, say),
    ]
    del peers, engines
    say("peak memory, in a fresh process")
    rows.append(_peak_memory())
    say("shell to first token")
    rows.append(_first_token(1 if quick else 3))
    rows += decode_graph_rows(MODEL, quick=quick, say=say)
    rows += overlap_rows("tiny", MODEL, quick=quick, say=say)
    rows += speculation_rows(MODEL, quick=quick, say=say)
    rows += scheduler_rows(quick=quick, say=say)
    versions = {"torch": torch.__version__, "transformers": _transformers_version()}
    return BenchReport("engine", rows, versions=versions)


def _prompt(num_tokens: int, seed: int = 0) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(100, 40_000) for _ in range(num_tokens)]


def _one_stream(
    engines: dict[str, LLM], peers: dict[str, TransformersPeer], repeats: int, say: Callable[[str], None]
) -> list[BenchRow]:
    say("one stream, 16 tokens in, 96 out")
    prompt, num_tokens = _prompt(16), 96

    def ours(llm: LLM) -> float:
        begin = time.perf_counter()
        llm.generate([prompt], SamplingParams(max_tokens=num_tokens, temperature=0.0, ignore_eos=True))
        return num_tokens / (time.perf_counter() - begin)

    def theirs(peer: TransformersPeer) -> float:
        begin = time.perf_counter()
        peer.generate([prompt], num_tokens)
        return num_tokens / (time.perf_counter() - begin)

    speeds = medians(
        [*(lambda p=p: theirs(p) for p in peers.values()), *(lambda e=e: ours(e) for e in engines.values())], repeats
    )
    best, name = max(zip(speeds, peers, strict=False))
    ceiling = measure_ceilings("cpu", quick=True).read_bytes_per_s
    rows = []
    for scheme, speed in zip(engines, speeds[len(peers) :], strict=True):
        achieved = engines[scheme].weight_bytes * speed
        note = f"{achieved / 1e9:.1f} of {ceiling / 1e9:.1f} GB/s, {achieved / ceiling:.0%}"
        target = None if scheme == DENSE else 2.5
        label = _label("one stream", scheme, engines)
        rows.append(at_least(label, speed, "tok/s", f"transformers {name}", best, target, note))
    return rows


def _mixed_batch(
    engines: dict[str, LLM], peers: dict[str, TransformersPeer], repeats: int, say: Callable[[str], None]
) -> list[BenchRow]:
    say("16 requests, 16-128 tokens in, 16-128 out")
    rng = random.Random(1)
    prompts = [_prompt(rng.randint(16, 128), seed) for seed in range(16)]
    lengths = [rng.randint(16, 128) for _ in range(16)]
    wanted = sum(lengths)

    def ours(llm: LLM) -> float:
        begin = time.perf_counter()
        params = [SamplingParams(max_tokens=length, temperature=0.0, ignore_eos=True) for length in lengths]
        llm.generate(prompts, params)
        return wanted / (time.perf_counter() - begin)

    def theirs(peer: TransformersPeer) -> float:
        begin = time.perf_counter()
        peer.generate(prompts, max(lengths))  # a static batch runs to its longest; only what was wanted counts
        return wanted / (time.perf_counter() - begin)

    speeds = medians(
        [*(lambda p=p: theirs(p) for p in peers.values()), *(lambda e=e: ours(e) for e in engines.values())],
        max(2, repeats - 2),
    )
    best, name = max(zip(speeds, peers, strict=False))
    peer = f"transformers {name}"
    note = f"of 16-128 tokens in and out; {wanted} wanted, a static padded batch computes {16 * max(lengths)}"
    return [
        at_least(
            _label("16 mixed", scheme, engines), speed, "tok/s", peer, best, 2.0 if scheme == DENSE else None, note
        )
        for scheme, speed in zip(engines, speeds[len(peers) :], strict=True)
    ]


def _prefill(
    engines: dict[str, LLM], peers: dict[str, TransformersPeer], repeats: int, say: Callable[[str], None]
) -> list[BenchRow]:
    say("prefill of 512 tokens")
    prompt = _prompt(512)

    def ours(llm: LLM) -> float:
        begin = time.perf_counter()
        llm.generate([prompt], SamplingParams(max_tokens=1, temperature=0.0))
        return time.perf_counter() - begin

    times = medians(
        [*(lambda p=p: p.prefill_s(prompt) for p in peers.values()), *(lambda e=e: ours(e) for e in engines.values())],
        2 * repeats,
    )
    best, name = min(zip(times, peers, strict=False))
    return [
        at_most(
            _label("prefill 512", scheme, engines),
            seconds,
            "s",
            f"transformers {name}",
            best,
            1.1 if scheme == DENSE else None,
        )
        for scheme, seconds in zip(engines, times[len(peers) :], strict=True)
    ]


def _label(what: str, scheme: str, engines: dict[str, LLM]) -> str:
    """Name a row; dense weights by their type."""
    return f"{what}, {_dtype_name(engines[scheme]) if scheme == DENSE else scheme}"


def _dtype_name(llm: LLM) -> str:
    return str(llm.resolved.dtype).removeprefix("torch.")


def _peak_memory() -> BenchRow:
    baseline = in_fresh_process(
        "import json, torch; from infra_lab.bench.measure import peak_memory_bytes\n"
        "print(json.dumps({'peak': peak_memory_bytes()}))"
    )["peak"]
    measured = in_fresh_process(
        "import json; from infra_lab.bench.measure import peak_memory_bytes\n"
        "from infra_lab import LLM, SamplingParams\n"
        f"llm = LLM({MODEL!r})\n"
        "tokens = llm.resolved.num_kv_blocks * llm.config.block_size // 64\n"
        "params = SamplingParams(max_tokens=100, temperature=0.0, ignore_eos=True)\n"
        "llm.generate([[7 + i] * (tokens - 100) for i in range(64)], params)\n"
        "weights = llm.model.config.num_parameters * llm.resolved.dtype.itemsize\n"
        "used = max(record.used_blocks for record in llm.recorder.steps) / llm.recorder.steps[0].total_blocks\n"
        "pool = llm.kv_memory.num_bytes\n"
        "dtype = str(llm.resolved.dtype)\n"
        "print(json.dumps({'peak': peak_memory_bytes(), 'weights': weights, 'pool': pool, 'used': used, 'dtype': dtype}))"
    )
    return at_most(
        "peak memory",
        (measured["peak"] - baseline) / 1e6,
        "MB",
        "weights + KV pool",
        (measured["weights"] + measured["pool"]) / 1e6,
        1.2,
        f"above a process that imported torch; default settings: {measured['dtype'].removeprefix('torch.')}, "
        f"KV pool of {measured['pool'] / 1e6:.0f} MB, {measured['used']:.0%} of it in use at the peak",
    )


def _first_token(repeats: int) -> BenchRow:
    command = [sys.executable, "-m", "infra_lab.cli", "generate", "--model", MODEL, "--max-tokens", "4", "Say hello."]
    seconds = min(time_to_first_output_s(command) for _ in range(repeats))
    return at_most("shell to first token", seconds, "s", "asked for", 6.0, 1.0, "model cached")


def _transformers_version() -> str:
    import transformers

    return str(transformers.__version__)
