"""Decode steps on padded static buffers give what the references give; without a GPU they are computed, not replayed."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import kernels
from infra_lab import LLM, SamplingParams
from infra_lab.engine.decode_buffers import DecodeBuffers
from infra_lab.engine.decode_graphs import DecodeGraphs, padded_sizes
from infra_lab.engine.torch_executor import TorchExecutor
from infra_lab.models.fetch import resolve_model
from infra_lab.models.transformer import CausalLM, StepInput
from infra_lab.scheduler.plan import Chunk
from infra_lab.scheduler.request import Request
from tests.engine.drained import assert_drained
from tests.kernels.conftest import DEVICE

TEXTS = ["def ", "The module", "x", "import", "class"]
LENGTHS = (2, 6, 4, 5, 3)


@pytest.fixture(autouse=True)
def _kernels_launch() -> Iterator[None]:
    with kernels.use("triton"):
        yield


@pytest.fixture(scope="module", autouse=True)
def _few_layers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Have `engine` run the first layers of "tiny" only: the interpreter takes a second for a GPU's millisecond."""
    tiny = resolve_model("tiny")
    config, tensors = json.loads((tiny / "config.json").read_text()), load_file(tiny / "model.safetensors")
    for num_layers in (1, 2):
        folder = _models[num_layers] = tmp_path_factory.mktemp("few layers")
        shutil.copytree(tiny, folder, dirs_exist_ok=True)
        (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": num_layers}))
        left_out = tuple(f"model.layers.{i}." for i in range(num_layers, config["num_hidden_layers"]))
        kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(left_out)}
        save_file(kept, folder / "model.safetensors")
    yield
    _models.clear()


_models: dict[int, Path] = {}


def engine(*, num_layers: int = 1, **settings: Any) -> LLM:
    defaults = {"dtype": "float32", "device": DEVICE.type, "num_kv_blocks": 64, "max_model_len": 256}
    return LLM(str(_models[num_layers]), **{**defaults, **settings})


def graphs_of(llm: LLM) -> DecodeGraphs:
    assert isinstance(llm.core.executor, TorchExecutor)
    assert llm.core.executor.graphs is not None
    return llm.core.executor.graphs


def written(llm: LLM, lengths: tuple[int, ...] = LENGTHS, **options: Any) -> list[list[int]]:
    params = [SamplingParams(max_tokens=n, ignore_eos=True, **{"temperature": 0.0, **options}) for n in lengths]
    tokens = [output.token_ids for output in llm.generate(TEXTS[: len(params)], params)]
    assert_drained(llm)
    return tokens


def test_sizes() -> None:
    assert padded_sizes(1) == [1]
    assert padded_sizes(4) == [1, 2, 4]
    assert padded_sizes(6) == [1, 2, 4, 6]
    assert padded_sizes(64) == [1, 2, 4, 8, 16, 24, 32, 48, 64]
    assert padded_sizes(600)[-9:] == [320, 352, 384, 416, 448, 480, 512, 576, 600]
    for size, larger in zip(padded_sizes(5000), padded_sizes(5000)[1:], strict=False):
        assert size < larger <= 2 * size, "at most half of a batch is padding"
        assert size < 16 or larger <= 1.5 * size


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        pytest.param({"block_size": 4}, {1, 2, 4, 8}, id="shrinking"),
        pytest.param({"max_num_seqs": 3}, {2, 3}, id="growing again"),
        pytest.param({"max_batched_tokens": 5, "max_num_seqs": 4, "block_size": 4}, {1, 2, 4}, id="chunks between"),
        pytest.param({"block_size": 4, "num_kv_blocks": 6, "max_model_len": 24}, {1, 2, 4}, id="preempted"),
        pytest.param({"enable_prefix_cache": False}, {1, 2, 4, 8}, id="no prefix cache"),
    ],
)
def test_tokens_are_the_references(settings: dict[str, Any], sizes: set[int]) -> None:
    with kernels.use("reference"), engine(**settings) as plain:
        expected = written(plain)
    with engine(**settings) as padded:
        assert written(padded) == expected
        if settings == {"block_size": 4}:
            assert written(padded) == expected, "now the prefix cache has the prompts"
            assert any(admission.num_cached_tokens for step in padded.recorder.steps for admission in step.admitted)
        assert set(graphs_of(padded).num_runs) >= sizes
        if "num_kv_blocks" in settings:
            assert any(step.preempted for step in padded.recorder.steps), "the cache was meant to be too small"


def test_without_graphs_nothing_is_padded() -> None:
    with engine(cuda_graphs=False) as llm, kernels.use("reference"):
        expected = written(llm, (2, 3))
    with engine(cuda_graphs=False) as llm:
        assert llm.core.executor.graphs is None
        assert written(llm, (2, 3)) == expected


def test_drawn_tokens_of_forks_are_the_references() -> None:
    params = SamplingParams(max_tokens=3, ignore_eos=True, temperature=0.9, top_k=30, seed=4, n=3, logprobs=1)
    with kernels.use("reference"), engine(block_size=4) as plain:
        expected = [sample.token_ids for sample in plain.generate(TEXTS[0], params)[0].samples]
    with engine(block_size=4) as padded:
        assert [sample.token_ids for sample in padded.generate(TEXTS[0], params)[0].samples] == expected
        assert graphs_of(padded).num_runs[4], "three samples in four rows"
    assert len({tuple(tokens) for tokens in expected}) > 1


def rows_at(lengths: list[int], tables: list[list[int]], vocab: int = 50) -> list[Chunk]:
    """Decode chunks: the last of so many tokens each."""
    generator = torch.Generator().manual_seed(sum(lengths))
    chunks = []
    for length, table in zip(lengths, tables, strict=True):
        tokens = torch.randint(vocab, (length,), generator=generator).tolist()
        request = Request(token_ids=tokens, request_id="r", params=SamplingParams())
        request.block_table = table
        chunks.append(Chunk(request, length - 1, 1))
    return chunks


def test_padding_writes_nothing_and_reads_nothing() -> None:
    """The blocks that only padding could touch are poisoned, and the tables of padding rows point outside the memory."""
    with engine(block_size=4) as llm:
        graphs, layers = graphs_of(llm), llm.kv_memory.layers
        for layer in layers:
            layer.normal_(generator=torch.Generator(DEVICE).manual_seed(3))
            layer[8:] = float("nan")
        chunks = rows_at([9, 2, 30], [[0, 1, 2], [3], [4, 5, 6, 0, 1, 4, 5, 7]])
        before = [layer.clone() for layer in layers]
        graphs._buffers._tables[3:] = 1 << 29
        with torch.inference_mode():
            compute, positions = graphs.prepare(chunks)
            logits = compute()
        assert positions == [0, 1, 2]
        assert logits.shape == (3, llm.model.config.vocab_size)
        assert logits.isfinite().all()
        assert graphs._logits[:4].isfinite().all(), "the padding row is an ordinary one"
        for old, new in zip(before, layers, strict=True):
            same = (old == new) | (old.isnan() & new.isnan())
            changed = (~same).flatten(0, 1).flatten(1).any(dim=1)  # by slot
            assert changed.nonzero().flatten().tolist() == [2 * 4 + 0, 3 * 4 + 1, 7 * 4 + 1]


def test_a_prompt_that_goes_on_gets_no_row() -> None:
    with engine(block_size=4) as llm:
        graphs = graphs_of(llm)
        chunks = rows_at([5, 3, 6], [[0, 1], [2], [3, 4]])
        chunks[1].request.token_ids.append(7)  # its chunk of one token is not its last
        with torch.inference_mode():
            compute, positions = graphs.prepare(chunks)
            logits = compute().clone()
        assert positions == [0, 2]
        assert torch.equal(logits, graphs._logits[[0, 2]])


def test_what_is_not_a_decode_step() -> None:
    with engine(max_num_seqs=2, block_size=4) as llm:
        graphs = graphs_of(llm)
        chunks = rows_at([5, 3, 6], [[0, 1], [2], [3, 4]])
        assert graphs.can_run(chunks[:2])
        assert not graphs.can_run([])
        assert not graphs.can_run(chunks), "more than there are rows"
        assert not graphs.can_run([chunks[0], Chunk(chunks[1].request, 0, 3)])
        with kernels.use("reference"):
            assert not graphs.can_run(chunks[:2])
    with kernels.use("reference"), engine() as llm:
        assert llm.core.executor.graphs is None, "the references gather each group of sequences, of any size"


def contents(buffers: DecodeBuffers, num_rows: int) -> dict[str, list[Any]]:
    step = buffers.inputs(num_rows)
    assert step.batch is not None
    parts = {"tokens": step.token_ids, "positions": step.positions, "slots": step.slots}
    parts |= {"keys": step.batch.key_lens, "tables": step.batch.block_tables, "sampled": step.sample_rows}
    return {name: part.tolist() for name, part in parts.items()}


def test_buffers_follow_a_batch_that_shrinks_and_a_table_that_changes() -> None:
    buffers = DecodeBuffers(max_num_seqs=4, max_model_len=12, block_size=4, device=DEVICE)
    places = buffers.inputs(4)
    chunks = rows_at([9, 2, 4], [[5, 3, 1], [7], [2]])
    buffers.fill(chunks)
    seen = contents(buffers, 4)
    assert seen["tokens"] == [*(chunk.request.token_ids[-1] for chunk in chunks), 0]
    assert seen["positions"] == [8, 1, 3, 0]
    assert seen["slots"] == [1 * 4 + 0, 7 * 4 + 1, 2 * 4 + 3, -1]
    assert seen["keys"] == [9, 2, 4, 0]
    assert [table[: len(c.request.block_table)] for table, c in zip(seen["tables"], chunks, strict=False)] == [
        [5, 3, 1],
        [7],
        [2],
    ]
    assert seen["sampled"] == [0, 1, 2, 3]
    chunks[2].request.block_table[0] = 6  # copied on write: as long as before
    buffers.fill(chunks[1:])
    seen = contents(buffers, 4)
    assert seen["slots"] == [7 * 4 + 1, 6 * 4 + 3, -1, -1]
    assert seen["keys"] == [2, 4, 0, 0]
    assert [table[0] for table in seen["tables"][:2]] == [7, 6]
    assert places.token_ids.data_ptr() == buffers.inputs(4).token_ids.data_ptr(), "a captured step reads where it was"


@pytest.mark.parametrize("num_rows", [1, 5])
def test_the_fused_start_of_a_layer_is_the_plain_one(num_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits of a decode step and what it stores, against the same step with the four operations one after the other."""
    calls = []
    fused_qkv = kernels.fused_qkv
    monkeypatch.setattr(kernels, "fused_qkv", lambda *args: (calls.append(args), fused_qkv(*args))[1])
    with engine(num_layers=2, block_size=4) as llm:
        lengths = [9, 2, 30, 1, 5][:num_rows]
        tables = [[0, 1, 2], [3], [4, 5, 6, 7, 8, 9, 10, 11], [12], [13, 14]][:num_rows]
        step = DecodeBuffers(max_num_seqs=8, max_model_len=64, block_size=4, device=DEVICE)
        step.fill(rows_at(lengths, tables))
        results = []
        for limit in (64, 0):
            monkeypatch.setattr("infra_lab.models.transformer.FUSED_ROWS", limit)
            results.append(forward(llm.model, step.inputs(num_rows), llm.kv_memory.layers))
        assert len(calls) == 2, "once a layer, and not at all with the limit of 0"
        (logits, caches), (plain, plain_caches) = results
        torch.testing.assert_close(logits, plain, atol=2e-4, rtol=1e-4)
        for cache, other in zip(caches, plain_caches, strict=True):
            torch.testing.assert_close(cache, other, atol=2e-5, rtol=1e-4)


@torch.inference_mode()
def forward(model: CausalLM, step: StepInput, layers: list[torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    for layer in layers:
        layer.normal_(generator=torch.Generator(DEVICE).manual_seed(3))
    return model.forward(step, layers), [layer.clone() for layer in layers]
