"""The engine on SmolLM2-135M against transformers on the same weights, on a CPU.

transformers is measured in bfloat16 and float32, and each row compares with whichever was faster. Ours runs with dense weights
of the type that is this machine's default, and with weight-only 8 and 4 bits; the row says which.
"""

import random
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

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
QUANTIZED = {"int8": "int8", "int4": "rtn-int4-g32"}
"""Row names and schemes of `LLM`; beside dense weights, which are named by their type."""


def run(*, quick: bool, say: Callable[[str], None]) -> BenchReport:
    """Measure all rows."""
    path = resolve_model(MODEL)
    repeats = 2 if quick else 5
    say("loading the peers")
    peers = {_name(dtype): TransformersPeer(path, dtype) for dtype in (torch.bfloat16, torch.float32)}
    dense = _load(None)
    engines = {_name(dense.resolved.dtype): dense} | {name: _load(scheme) for name, scheme in QUANTIZED.items()}
    rows = [
        *_one_stream(engines, peers, repeats, say),
        *_mixed_batch(engines, peers, max(2, repeats - 2), say),
        *_prefill(engines, peers, 2 * repeats, say),
    ]
    del peers, dense, engines
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


def _load(scheme: str | None) -> LLM:
    return LLM(MODEL, quantization=scheme, max_model_len=2048, enable_prefix_cache=False, kv_cache_bytes=128 << 20)


class _Times(NamedTuple):
    """Median seconds of the same work, done in turn."""

    ours: dict[str, float]
    peer: str
    """The faster of the peers, and its time."""
    peer_s: float


def _race(
    engines: dict[str, LLM],
    peers: dict[str, TransformersPeer],
    ours: Callable[[LLM], object],
    theirs: Callable[[TransformersPeer], object],
    repeats: int,
) -> _Times:
    calls = [partial(ours, engine) for engine in engines.values()] + [partial(theirs, peer) for peer in peers.values()]
    times = medians([partial(_seconds, call) for call in calls], repeats)
    ours_s, peers_s = times[: len(engines)], times[len(engines) :]
    peer_s, peer = min(zip(peers_s, peers, strict=True))
    return _Times(dict(zip(engines, ours_s, strict=True)), f"transformers {peer}", peer_s)


def _one_stream(
    engines: dict[str, LLM], peers: dict[str, TransformersPeer], repeats: int, say: Callable[[str], None]
) -> Iterator[BenchRow]:
    say("one stream, 16 tokens in, 96 out")
    prompt, num_tokens = _prompt(16), 96
    params = SamplingParams(max_tokens=num_tokens, temperature=0.0, ignore_eos=True)
    times = _race(
        engines,
        peers,
        lambda llm: llm.generate([prompt], params),
        lambda peer: peer.generate([prompt], num_tokens),
        repeats,
    )
    ceiling = measure_ceilings("cpu", quick=True).read_bytes_per_s
    for name, seconds in times.ours.items():
        speed, target = num_tokens / seconds, 2.5 if name in QUANTIZED else None
        achieved = engines[name].weight_bytes * speed
        note = f"{achieved / 1e9:.1f} of {ceiling / 1e9:.1f} GB/s, {achieved / ceiling:.0%}"
        yield at_least(f"one stream, {name}", speed, "tok/s", times.peer, num_tokens / times.peer_s, target, note)


def _mixed_batch(
    engines: dict[str, LLM], peers: dict[str, TransformersPeer], repeats: int, say: Callable[[str], None]
) -> Iterator[BenchRow]:
    say("16 requests, 16-128 tokens in, 16-128 out")
    rng = random.Random(1)
    prompts = [_prompt(rng.randint(16, 128), seed) for seed in range(16)]
    lengths = [rng.randint(16, 128) for _ in range(16)]
    wanted, longest = sum(lengths), max(lengths)
    params = [SamplingParams(max_tokens=length, temperature=0.0, ignore_eos=True) for length in lengths]
    times = _race(
        engines,
        peers,
        lambda llm: llm.generate(prompts, params),
        lambda peer: peer.generate(prompts, longest),  # a static batch runs to its longest; only what was wanted counts
        repeats,
    )
    note = f"of 16-128 tokens in and out; {wanted} wanted, a static padded batch computes {16 * longest}"
    for name, seconds in times.ours.items():
        target = None if name in QUANTIZED else 2.0
        yield at_least(f"16 mixed, {name}", wanted / seconds, "tok/s", times.peer, wanted / times.peer_s, target, note)


def _prefill(
    engines: dict[str, LLM], peers: dict[str, TransformersPeer], repeats: int, say: Callable[[str], None]
) -> Iterator[BenchRow]:
    say("prefill of 512 tokens")
    prompt, params = _prompt(512), SamplingParams(max_tokens=1, temperature=0.0)
    times = _race(
        engines, peers, lambda llm: llm.generate([prompt], params), lambda peer: peer.prefill(prompt), repeats
    )
    for name, seconds in times.ours.items():
        target = None if name in QUANTIZED else 1.1
        yield at_most(f"prefill 512, {name}", seconds, "s", times.peer, times.peer_s, target)


def _seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def _prompt(num_tokens: int, seed: int = 0) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(100, 40_000) for _ in range(num_tokens)]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


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
        "dtype = str(llm.resolved.dtype).removeprefix('torch.')\n"
        "print(json.dumps({'peak': peak_memory_bytes(), 'weights': weights, 'pool': pool, 'used': used, 'dtype': dtype}))"
    )
    return at_most(
        "peak memory",
        (measured["peak"] - baseline) / 1e6,
        "MB",
        "weights + KV pool",
        (measured["weights"] + measured["pool"]) / 1e6,
        1.2,
        f"above a process that imported torch; default settings: {measured['dtype']}, "
        f"KV pool of {measured['pool'] / 1e6:.0f} MB, {measured['used']:.0%} of it in use at the peak",
    )


def _first_token(repeats: int) -> BenchRow:
    command = [sys.executable, "-m", "infra_lab.cli", "generate", "--model", MODEL, "--max-tokens", "4", "Say hello."]
    seconds = min(time_to_first_output_s(command) for _ in range(repeats))
    return at_most("shell to first token", seconds, "s", "asked for", 6.0, 1.0, "model cached")


def _transformers_version() -> str:
    import transformers

    return str(transformers.__version__)
