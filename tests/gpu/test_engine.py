"""The same engine on a GPU: tokens equal to the CPU's in float32, however requests are batched, replayed or not."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from infra_lab import LLM, SamplingParams
from infra_lab.engine.decode_graphs import DecodeGraphs
from infra_lab.engine.torch_executor import TorchExecutor
from infra_lab.models.fetch import resolve_model

TEXTS = ["The built-in function len returns", "class", "import os\n", "Raises ValueError if the argument is not " * 6]
MANY = [f"{text}{i}" for i in range(5) for text in TEXTS[:3]]
"""15 requests: more than a graph of 8 holds, less than one of 16."""


@pytest.fixture(autouse=True)
def _full_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


@pytest.fixture
def started() -> Iterator[Callable[..., LLM]]:
    """Starts engines on the GPU, and gives their memory back."""
    engines: list[LLM] = []

    def start(model: str = "tiny", **settings: Any) -> LLM:
        engines.append(LLM(model, **{"dtype": "float32", "device": "cuda", "kv_cache_bytes": 32 << 20, **settings}))
        return engines[-1]

    yield start
    for llm in engines:
        llm.close()
    torch.cuda.empty_cache()


def graphs_of(llm: LLM) -> DecodeGraphs:
    assert isinstance(llm.core.executor, TorchExecutor)
    assert llm.core.executor.graphs is not None
    return llm.core.executor.graphs


def staggered(num_requests: int, **options: Any) -> list[SamplingParams]:
    """Requests of different lengths, so that the batch shrinks through the padded sizes."""
    return [SamplingParams(max_tokens=4 + 3 * i, ignore_eos=True, **options) for i in range(num_requests)]


def tokens(llm: LLM, texts: list[Any], params: Any) -> list[list[int]]:
    return [output.token_ids for output in llm.generate(texts, params)]


@pytest.mark.parametrize(
    "settings",
    [{}, {"max_batched_tokens": 16, "max_num_seqs": 4}, {"num_kv_blocks": 60}, {"cuda_graphs": False}],
    ids=str,
)
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_tokens_equal_the_cpus(settings: dict[str, Any], temperature: float, started: Callable[..., LLM]) -> None:
    params = SamplingParams(max_tokens=16, temperature=temperature, seed=5, ignore_eos=True)
    cpu = LLM("tiny", dtype="float32", device="cpu", kv_cache_bytes=32 << 20)
    expected = [cpu.generate(text, params)[0].token_ids for text in TEXTS]
    gpu = started(**{"block_size": 8, **settings})
    assert tokens(gpu, TEXTS, params) == expected
    blocks = gpu.core.scheduler.blocks
    assert blocks.num_free_blocks == blocks.num_blocks


def test_bfloat16_and_int8_run_and_the_pool_takes_the_rest_of_the_memory() -> None:
    for quantization in (None, "int8"):
        llm = LLM("tiny", device="cuda", dtype="bfloat16", quantization=quantization, gpu_memory_fraction=0.3)
        free_bytes, total_bytes = torch.cuda.mem_get_info()
        assert total_bytes - free_bytes <= 0.35 * total_bytes
        assert len(llm.generate("def", SamplingParams(max_tokens=8, ignore_eos=True))[0].token_ids) == 8
        assert graphs_of(llm).num_replays == 7, "the first token comes from the prefill"
        llm.close()
        torch.cuda.empty_cache()


@pytest.mark.parametrize("settings", [{}, {"block_size": 8, "num_kv_blocks": 70}, {"max_num_seqs": 11}], ids=str)
def test_replayed_tokens_are_those_of_single_launches(settings: dict[str, Any], started: Callable[..., LLM]) -> None:
    """In float32, through all padded sizes up to 16, with preemption, and with a batch that fills the largest graph."""
    params = staggered(len(MANY), temperature=0.0)
    replaying, launching = started(**settings), started(**settings, cuda_graphs=False)
    for _ in range(2):  # the second time the prefix cache has the prompts, and the buffers hold an earlier batch
        assert tokens(replaying, MANY, params) == tokens(launching, MANY, params)
    graphs = graphs_of(replaying)
    assert graphs.num_replays == sum(graphs.num_runs.values()) > 40, "on a GPU every size is captured"
    assert {1, 2, 4, 8} <= set(graphs.num_runs)
    assert launching.core.executor.graphs is None
    if "num_kv_blocks" in settings:
        assert any(step.preempted for step in replaying.recorder.steps), "the cache was meant to be too small"


def test_prefill_between_replays(started: Callable[..., LLM]) -> None:
    """Requests that come while others decode: steps that mix run launch by launch, and leave the graphs' buffers right."""
    params = SamplingParams(max_tokens=40, temperature=0.0, ignore_eos=True)
    replaying, launching = started(max_batched_tokens=32), started(max_batched_tokens=32, cuda_graphs=False)
    assert arriving_one_by_one(replaying, params) == arriving_one_by_one(launching, params)
    sizes = [{chunk.num_tokens for chunk in step.chunks} for step in replaying.recorder.steps]
    assert any(1 in size and max(size) > 1 for size in sizes), "prefill chunks and decodes were meant to share steps"
    assert graphs_of(replaying).num_replays > 30


def arriving_one_by_one(llm: LLM, params: SamplingParams) -> list[list[int]]:
    """Add a text every five steps; return the tokens of each."""
    written: dict[str, list[int]] = {}
    texts = list(TEXTS)
    while texts or llm.core.has_work:
        if texts:
            written[llm.core.add(llm.encode(texts.pop(0)), params)] = []
        for _ in range(5):
            for delta in llm.core.step():
                written[delta.request_id] += delta.token_ids
    return list(written.values())


@pytest.mark.parametrize("options", [{}, {"top_k": 40}, {"top_p": 0.9, "temperature": 1.3}], ids=str)
def test_a_seed_fixes_the_tokens_in_any_batch(options: dict[str, Any], started: Callable[..., LLM]) -> None:
    params = SamplingParams(**{"temperature": 0.9, **options}, seed=11, max_tokens=24, ignore_eos=True)
    llm = started(enable_prefix_cache=False)
    alone = [llm.generate(text, params)[0].token_ids for text in TEXTS]
    assert tokens(llm, TEXTS, params) == alone
    noise = [SamplingParams(temperature=2.0, seed=i, max_tokens=5 + 4 * i, ignore_eos=True) for i in range(9)]
    mixed = tokens(llm, [*MANY[:9], *TEXTS], [*noise, *[params] * len(TEXTS)])
    assert mixed[9:] == alone
    forks = SamplingParams(**{"temperature": 0.9, **options}, seed=11, max_tokens=24, ignore_eos=True, n=3)
    assert llm.generate(TEXTS[0], forks)[0].samples[0].token_ids == alone[0]


LLAMA_3_8B = {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8}
LLAMA_3_8B |= {"head_dim": 128, "num_hidden_layers": 2, "max_position_embeddings": 8192}


@pytest.fixture
def llama(tmp_path: Path) -> str:
    """Two layers of Llama-3-8B's shape, to be filled with dummy weights; the tokenizer is the small one."""
    tiny = resolve_model("tiny")
    config = json.loads((tiny / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **LLAMA_3_8B, "vocab_size": 128_256}))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((tiny / name).read_bytes())
    return str(tmp_path)


def test_a_replay_is_bit_for_bit_what_was_captured(
    llama: str, started: Callable[..., LLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    """bfloat16 at a real model's width: the padded step, replayed and launch by launch.

    Against unpadded steps nothing can be asked for bit by bit: a product of 15 rows may be summed in another order than one
    of 16, and random weights make logits that are nearly equal.
    """
    settings = {"load_format": "dummy", "dtype": "bfloat16", "kv_cache_bytes": 256 << 20}
    params, prompts = staggered(15, temperature=0.0), [[7 + i, 9, 11 + 2 * i] * (1 + 9 * i) for i in range(15)]
    replaying = started(llama, **settings)
    monkeypatch.setattr(DecodeGraphs, "_capture_all", lambda self: {})
    launching = started(llama, **settings)
    assert tokens(replaying, prompts, params) == tokens(launching, prompts, params)
    assert graphs_of(replaying).num_replays == sum(graphs_of(replaying).num_runs.values()) > 40
    assert graphs_of(launching).num_replays == 0
    assert graphs_of(launching).num_runs == graphs_of(replaying).num_runs


def test_padding_moves_no_logit_beyond_rounding(llama: str, started: Callable[..., LLM]) -> None:
    """The logits of one bfloat16 decode step, replayed with padding and launched without, from the same KV."""
    settings = {"load_format": "dummy", "dtype": "bfloat16", "kv_cache_bytes": 256 << 20, "enable_prefix_cache": False}
    llm = started(llama, **settings)
    params = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True)
    for i in range(5):
        llm.core.add([7 + i, 9, 11 + 2 * i] * (1 + 40 * i), params)
    while llm.core.has_work:
        plan = llm.core.scheduler.schedule()
        executor = llm.core.executor
        assert isinstance(executor, TorchExecutor)
        with torch.inference_mode():
            compute, rows = executor._prepare(plan)
            logits = compute().clone()
            graphs, executor.graphs = executor.graphs, None
            compute, plain_rows = executor._prepare(plan)  # writes the same KV once more
            plain = compute()
            executor.graphs = graphs
        order = [plain_rows.index(row) for row in rows]
        difference = (logits.float() - plain[order].float()).abs().amax()
        assert difference <= 0.03 * plain.float().abs().amax()
        llm.core.scheduler.update(plan, executor.execute(plan))
    assert graphs_of(llm).num_replays > 5


def test_what_cannot_be_captured_says_so() -> None:
    """In a process of its own: after a capture that failed, torch's memory pool is not what it was."""
    code = (
        "from infra_lab import LLM\n"
        "from infra_lab.engine.decode_graphs import DecodeGraphs\n"
        "compute = DecodeGraphs._compute\n"
        "def waits(self, size):\n"
        "    compute(self, size)\n"
        "    self._logits[0, 0].item()\n"
        "DecodeGraphs._compute = waits\n"
        "LLM('tiny', device='cuda', kv_cache_bytes=32 << 20)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "ConfigError: a decode step of this model could not be captured" in done.stderr
