"""One decoder layer of SmolLM2 in the hands of everyone who fuses graphs: time, launches, bytes.

Eager mode is the peer of all. With a GPU it runs there, in bfloat16, with and without CUDA graphs, which take away what
launching costs, and beside the engine's own layer. Without one it runs in float32 on one thread: ONNX Runtime has no bfloat16
on CPUs, and a layer is too little work for threads to share. Where no C++ compiler is found, torch.compile is counted and not
timed.
"""

import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from statistics import median
from typing import Any

import torch

from infra_lab.bench.measure import interleaved
from infra_lab.bench.report import BenchReport, BenchRow, at_least, at_most
from infra_lab.engine.cuda_graph import GraphCapture
from infra_lab.errors import ModelNotFoundError
from infra_lab.fusion.block import BlockShape, DecoderBlock, block_inputs, block_of
from infra_lab.fusion.compare import CACHE, Traffic, compare
from infra_lab.fusion.engine_layer import engine_state
from infra_lab.fusion.inductor import can_compile, compiled
from infra_lab.fusion.onnx_runtime import OnnxModule
from infra_lab.hardware.probes import measure_ceilings
from infra_lab.models.config import ModelConfig
from infra_lab.models.fetch import cached_model, resolve_model
from infra_lab.models.loading import load_model
from infra_lab.models.transformer import DecoderLayer
from infra_lab.models.weights import open_checkpoint
from infra_lab.quantization import LinearScheme

SHAPES = {
    "decode": BlockShape(1, 1, 511),
    "decode of 8": BlockShape(8, 1, 511),
    "prefill 128": BlockShape(1, 128, 0),
    "prefill 512": BlockShape(1, 512, 0),
}
IN_A_ROW = 10
"""Layers between two looks at the clock, so that waiting for the GPU does not count."""


def run(*, quick: bool, say: Callable[[str], None]) -> BenchReport:
    """Measure all rows; two minutes, of which compiling takes most. Raises ModelNotFoundError without a model."""
    name = "smollm2-135m" if cached_model("smollm2-135m") is not None else "tiny"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config, layer, block = first_layer(name, device)
    rows: list[BenchRow] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for title, shape in list(SHAPES.items())[:: 2 if quick else 1]:
            say(f"{name} on {device}, {title}: timing")
            ways = ways_of(config, layer, block, shape)
            rows += time_rows(ways, title, shape, repeats=10 if quick else 50)
            say(f"{name} on {device}, {title}: counting")
            counted = compare(config, shape, dtype=block.q.dtype, with_onnx=device == "cpu", device=device)
            rows += count_rows(counted, title)
        say("what memory delivers")
        rows.insert(0, _against_memory(block, config))
    finally:
        torch.set_num_threads(threads)
    versions = {"torch": torch.__version__, "onnxruntime": version("onnxruntime"), "model": name}
    return BenchReport("fusion", rows, versions=versions)


def first_layer(name: str, device: str) -> tuple[ModelConfig, DecoderLayer, DecoderBlock]:
    """Return a model's configuration and its first layer, as the engine has it and written out.

    In bfloat16 on a GPU, in float32 on a CPU. Raises ModelNotFoundError if it has not been fetched.
    """
    if name != "tiny" and cached_model(name) is None:
        raise ModelNotFoundError(f"{name} is not in the cache; run `infra-lab fetch {name}`")
    checkpoint = open_checkpoint(resolve_model(name))
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    model = load_model(checkpoint, dtype=dtype, device=torch.device(device), scheme=LinearScheme(), max_model_len=1024)
    return checkpoint.config, model.layers[0], block_of(model.layers[0], checkpoint.config)


@torch.no_grad()
def ways_of(
    config: ModelConfig, layer: DecoderLayer, block: DecoderBlock, shape: BlockShape
) -> dict[str, Callable[[], Any]]:
    """Return functions that run the layer, eager mode first: what this machine has."""
    dtype, device = block.q.dtype, block.q.device
    inputs = block_inputs(config, shape, dtype=dtype, device=device)
    ways: dict[str, Callable[[], Any]] = {"eager": partial(block, *inputs)}
    if device.type == "cuda":
        residual = inputs.x.reshape(-1, config.hidden_size).clone()  # the engine adds to it in place
        state = engine_state(config, shape, torch.zeros_like(residual), residual, device)
        engine = partial(layer.turn, *state, fuses=layer.can_fuse(state.step))
        ways["torch.compile"] = partial(compiled(block), *inputs)
        ways["engine"] = engine
        capture = GraphCapture(device)
        ways["eager, graph"] = capture(ways["eager"])
        ways["compile, graph"] = capture(ways["torch.compile"])
        ways["engine, graph"] = capture(engine)
    else:
        if can_compile():
            ways["torch.compile"] = partial(compiled(block), *inputs)
        ways["ONNX Runtime"] = OnnxModule(block, inputs).session("all", num_threads=1)
    return ways


def time_rows(ways: dict[str, Callable[[], Any]], title: str, shape: BlockShape, repeats: int) -> list[BenchRow]:
    """Time them in turn; one row each beside the first."""
    with torch.no_grad():
        results = interleaved([partial(_layer_s, way) for way in ways.values()], repeats)
    eager_s, *others = (median(kept) for kept in results)
    note = f"{shape.batch} sequence(s), {shape.tokens} new token(s), {shape.past} cached"
    return [
        at_least(f"{title}: {name}", 1 / taken_s, "layers/s", "eager", 1 / eager_s, None, note)
        for name, taken_s in zip(list(ways)[1:], others, strict=True)
    ]


def _layer_s(function: Callable[[], Any]) -> float:
    runs = IN_A_ROW if torch.cuda.is_available() else 1
    begin = time.perf_counter()
    for _ in range(runs):
        function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - begin) / runs


def count_rows(rows: list[Traffic], title: str) -> list[BenchRow]:
    """Launches and bytes of everyone beside eager mode's, which comes first."""
    eager = rows[0]
    made = []
    for row in rows[1:]:
        made.append(at_most(f"{title}: {row.name}", row.launches, "launches", "eager", eager.launches, None))
        made.append(at_most(f"{title}: {row.name}", row.num_bytes / 1e6, "MB", "eager", eager.num_bytes / 1e6, None))
    return made


def _against_memory(block: DecoderBlock, config: ModelConfig) -> BenchRow:
    """A decode reads all weights: what it reads a second beside what this machine's memory delivers."""
    inputs = block_inputs(config, SHAPES["decode"], dtype=block.q.dtype, device=block.q.device)
    num_bytes = sum(weight.nbytes for weight in block.parameters()) + sum(inputs[index].nbytes for index in CACHE)
    with torch.no_grad():
        taken_s = median(interleaved([partial(_layer_s, partial(block, *inputs))], 30)[0])
    read = measure_ceilings(block.q.device.type, quick=True).read_bytes_per_s
    note = "weights and cache over the time of a layer; above 1, they lay in the processor's cache"
    return at_least("decode: eager", num_bytes / taken_s / 1e9, "GB/s", "reading memory", read / 1e9, None, note)
