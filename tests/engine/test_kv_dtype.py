"""A KV cache in 8 bits: the model is transformers' with rounded keys and values, and all that moves blocks moves scales too."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.integrations.sdpa_attention import sdpa_attention_forward

import kernels
from infra_lab import LLM, SamplingParams
from infra_lab.data import data_path
from infra_lab.engine.scoring import score_chunks
from infra_lab.engine.torch_executor import TorchExecutor
from infra_lab.errors import ConfigError
from infra_lab.evaluation import evaluation_tokens, perplexity
from infra_lab.models.fetch import resolve_model
from tests.engine.drained import assert_drained
from tests.kernels.conftest import DEVICE

EIGHT_BITS = ("int8", "fp8")
TEXT = "def read(self, size):\n    If the file is closed, an exception is raised; else bytes are returned. "
LEN = "The built-in function len returns the number of items in an object. "
PROMPTS = [LEN + "The argument", LEN + "It raises an", "Return a list of the ", LEN + "The argument"]
GREEDY = SamplingParams(max_tokens=16, temperature=0.0, ignore_eos=True)


def engine(kv_dtype: str = "int8", **settings: Any) -> LLM:
    defaults = {"dtype": "float32", "device": "cpu", "num_kv_blocks": 64, "block_size": 8}
    return LLM("tiny", kv_dtype=kv_dtype, **{**defaults, **settings})


def log_probs(llm: LLM, chunk_tokens: int = 64) -> torch.Tensor:
    return torch.cat([chunk.log_probs for chunk in score_chunks(llm, llm.encode(TEXT), chunk_tokens=chunk_tokens)])


def rounded(x: torch.Tensor, kv_dtype: str) -> torch.Tensor:
    """Each head of each token to the nearest multiple of its largest / 127, or to E4M3 with its largest at 448."""
    limit = 127 if kv_dtype == "int8" else 448
    scale = x.double().abs().amax(-1, keepdim=True) / limit
    steps = x.double() / scale
    steps = steps.round() if kv_dtype == "int8" else steps.float().to(torch.float8_e4m3fn).double()
    return (steps * scale).to(x.dtype)


def their_log_probs(token_ids: list[int], kv_dtype: str) -> torch.Tensor:
    """By transformers, whose attention gets keys and values rounded; "auto" leaves them as they are."""

    def attention(module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> Any:
        if kv_dtype != "auto":
            key, value = rounded(key, kv_dtype), rounded(value, kv_dtype)
        return sdpa_attention_forward(module, query, key, value, mask, **options)

    transformers.AttentionInterface.register("rounded_kv", attention)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        data_path("tiny"), dtype=torch.float32, attn_implementation="rounded_kv"
    ).eval()
    with torch.no_grad():
        return torch.log_softmax(model(torch.tensor([token_ids])).logits[0], dim=-1)


@pytest.mark.parametrize("kv_dtype", EIGHT_BITS)
def test_the_model_is_transformers_with_rounded_keys_and_values(kv_dtype: str) -> None:
    """A number between two steps may go the other way, by float32's noise: that is a few rows of logits, and slight."""
    llm = engine(kv_dtype)
    token_ids = llm.encode(TEXT)
    exact, theirs = their_log_probs(token_ids, "auto"), their_log_probs(token_ids, kv_dtype)
    for chunk_tokens in (64, 7):
        error = (log_probs(llm, chunk_tokens) - theirs).abs()
        assert error.median() < 1e-4
        assert error.max() < 0.03
    assert (theirs - exact).abs().median() > 0.01, "rounding shows"


def test_attention_over_rounded_keys_and_values_is_off_by_no_more_than_their_steps_allow() -> None:
    """Scores move by ε = |q|₁ · step / 2 / √D at most, so weights by a factor of e^±2ε, and values by step / 2 themselves."""
    generator = torch.Generator().manual_seed(0)
    num_keys, num_heads, head_dim = 48, 4, 32
    query = torch.randn(1, num_heads, head_dim, generator=generator)
    key, value = torch.randn(2, num_keys, num_heads, head_dim, generator=generator).unbind(0)
    shape = (3, 16, 2, num_heads, head_dim)
    cache = kernels.QuantizedKV(torch.zeros(shape, dtype=torch.int8), torch.zeros(shape[:4]))
    kernels.kv_store(cache.values, key, value, torch.arange(num_keys), cache.scales)
    group = kernels.QueryGroup(0, 1, 1, num_keys, slice(0, 3), None, False)
    out = kernels.paged_attention(query, cache, [group])[0].double()

    k, v, q = (x.double().transpose(0, 1) for x in (key, value, query))  # [Hq, ..., D]
    exact = (torch.softmax(q @ k.mT / head_dim**0.5, dim=-1) @ v).squeeze(1)
    half_step = k.abs().amax((1, 2)) / 254, v.abs().amax((1, 2)) / 254
    epsilon = q.abs().sum(-1).squeeze(1) * half_step[0] / head_dim**0.5
    bound = torch.expm1(2 * epsilon) * v.abs().amax((1, 2)) + half_step[1]
    error = (out - exact).abs().amax(-1)
    assert (error <= bound).all()
    assert (bound < 0.3 * v.abs().amax((1, 2))).all(), "or the bound would say nothing"


def tensors(llm: LLM) -> list[torch.Tensor]:
    return [
        tensor
        for layer in llm.kv_memory.layers
        for tensor in ([layer] if isinstance(layer, torch.Tensor) else [layer.values, layer.scales])
    ]


@pytest.mark.parametrize(
    ("kv_dtype", "dtype", "block_bytes"),
    [  # 4 layers · 8 tokens · (K and V) · 2 heads · bytes of 32 elements, and of a scale
        ("auto", "float32", 4 * 8 * 2 * 2 * 32 * 4),
        ("auto", "bfloat16", 4 * 8 * 2 * 2 * 32 * 2),
        ("int8", "float32", 4 * 8 * 2 * 2 * (32 + 4)),
        ("int8", "bfloat16", 4 * 8 * 2 * 2 * (32 + 4)),
        ("fp8", "bfloat16", 4 * 8 * 2 * 2 * (32 + 4)),
    ],
)
def test_blocks_that_fit_a_budget(kv_dtype: str, dtype: str, block_bytes: int) -> None:
    llm = engine(kv_dtype, dtype=dtype, num_kv_blocks=None, kv_cache_bytes=1_000_000)
    num_blocks = 1_000_000 // block_bytes
    assert (
        llm.resolved.num_kv_blocks == len(llm.kv_memory.layers[0]) == llm.core.scheduler.blocks.num_blocks == num_blocks
    )
    assert llm.kv_memory.num_bytes == sum(tensor.nbytes for tensor in tensors(llm)) == num_blocks * block_bytes


def test_errors() -> None:
    with pytest.raises(ConfigError, match="unknown kv_dtype 'int4'; known: auto, int8, fp8"):
        engine("int4")
    with pytest.raises(ConfigError, match=r"less than one block of 4,608"):
        engine("int8", num_kv_blocks=None, kv_cache_bytes=4607)


@pytest.fixture(scope="module", params=EIGHT_BITS)
def alone(request: pytest.FixtureRequest) -> tuple[str, list[list[int]]]:
    """The format, and the tokens of each prompt as the only request of an engine in which nothing is shared."""
    llm = engine(request.param, enable_prefix_cache=False)
    return request.param, [llm.generate(prompt, GREEDY)[0].token_ids for prompt in PROMPTS]


def test_most_tokens_are_those_of_the_full_cache(alone: tuple[str, list[list[int]]]) -> None:
    plain = engine("auto")
    full = [plain.generate(prompt, GREEDY)[0].token_ids for prompt in PROMPTS]
    agreeing = [sum(a == b for a, b in zip(*pair, strict=True)) for pair in zip(full, alone[1], strict=True)]
    assert sum(agreeing) >= 0.75 * GREEDY.max_tokens * len(PROMPTS)


def test_prefixes_are_found(alone: tuple[str, list[list[int]]]) -> None:
    kv_dtype, expected = alone
    with engine(kv_dtype) as llm:
        for prompt, token_ids in zip(PROMPTS, expected, strict=True):
            output = llm.generate(prompt, GREEDY)[0]
            assert output.token_ids == token_ids
        assert output.metrics.num_cached_tokens == (len(llm.encode(PROMPTS[3])) - 1) // 8 * 8
        assert_drained(llm)


def test_forks_copy_scales_with_their_blocks(alone: tuple[str, list[list[int]]]) -> None:
    """Three samples share the prompt's last block, which is partial, and each then writes to it."""
    kv_dtype, expected = alone
    params = SamplingParams(max_tokens=16, temperature=0.0, ignore_eos=True, n=3)
    with engine(kv_dtype) as llm:
        assert len(llm.encode(PROMPTS[2])) % 8, "or no block would be shared that is written to"
        output = llm.generate(PROMPTS[2], params)[0]
        assert llm.core.scheduler.blocks.stats.copies >= 2
        assert [sample.token_ids for sample in output.samples] == [expected[2]] * 3
        assert_drained(llm)


def test_preempted_requests_write_the_same(alone: tuple[str, list[list[int]]]) -> None:
    kv_dtype, expected = alone
    with engine(kv_dtype, num_kv_blocks=22, enable_prefix_cache=False) as llm:
        outputs = llm.generate(PROMPTS, GREEDY)
        assert sum(output.metrics.num_preemptions for output in outputs) > 0
        assert [output.token_ids for output in outputs] == expected
        assert_drained(llm)


@pytest.fixture(scope="module")
def one_layer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first layer of "tiny": the interpreter takes a second for a GPU's millisecond."""
    folder = tmp_path_factory.mktemp("one layer")
    shutil.copytree(data_path("tiny"), folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    weights = load_file(folder / "model.safetensors")
    kept = {name: x for name, x in weights.items() if "layers." not in name or "layers.0." in name}
    save_file(kept, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("kv_dtype", EIGHT_BITS)
def test_kernels_write_the_tokens_of_the_references(one_layer: Path, kv_dtype: str) -> None:
    """Chunks of prompts, then decode steps on padded buffers; the fused start of a layer, which rounds nothing, stays out."""
    params = SamplingParams(max_tokens=3, temperature=0.0, ignore_eos=True)
    settings = {"dtype": "float32", "device": DEVICE.type, "num_kv_blocks": 16, "max_model_len": 64, "block_size": 8}
    settings |= {"kv_dtype": kv_dtype, "max_num_seqs": 3, "max_batched_tokens": 12}
    written, caches = [], []
    for mode in ("reference", "triton"):
        with kernels.use(mode), LLM(str(one_layer), **settings) as llm:
            written.append([output.token_ids for output in llm.generate(["def read(self):", "x", "in"], params)])
            caches.append([tensor.cpu().float() for tensor in tensors(llm)])
            executor = llm.core.executor
            assert isinstance(executor, TorchExecutor)
            assert mode == "reference" or (executor.graphs is not None and sum(executor.graphs.num_runs.values()) >= 2)
    assert written[0] == written[1]
    (values, scales), (same_values, same_scales) = caches
    assert (values != 0).any()
    assert torch.allclose(scales, same_scales, rtol=1e-4)
    assert (values != same_values).float().mean() < 0.01, "but for noise on the border of two steps"


def test_a_kernel_cache_of_8_bits_is_not_written_by_the_fused_start() -> None:
    with kernels.use("triton"), engine("int8", cuda_graphs=True) as llm, engine("auto") as plain:
        executor = llm.core.executor
        assert isinstance(executor, TorchExecutor)
        assert executor.graphs is not None
        step, layer = executor.graphs._buffers.inputs(1), llm.model.layers[0]
        assert layer.can_fuse(step, plain.kv_memory.layers[0])
        assert not layer.can_fuse(step, llm.kv_memory.layers[0])


@pytest.mark.smollm2
def test_perplexity_of_smollm2() -> None:
    path = resolve_model("smollm2-135m")
    found = {}
    for kv_dtype in ("auto", *EIGHT_BITS):
        settings = {"dtype": "float32", "device": "cpu", "max_model_len": 512, "kv_cache_bytes": 32 << 20}
        with LLM(str(path), kv_dtype=kv_dtype, **settings) as llm:
            found[kv_dtype] = perplexity(llm, evaluation_tokens(llm.encode, 500)).value
    assert found["int8"] == pytest.approx(found["auto"], rel=0.005)
    assert found["fp8"] == pytest.approx(found["auto"], rel=0.015)  # 4 significant bits of each number, and no more
