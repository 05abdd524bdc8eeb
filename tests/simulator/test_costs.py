"""Cost models: FLOPs as torch counts them, a known model's bytes, torch's own interpolation, planted coefficients."""

import random
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from infra_lab import LLM, SamplingParams
from infra_lab.engine.recorder import ChunkRecord, StepRecord
from infra_lab.errors import ConfigError
from infra_lab.models.config import ModelConfig
from infra_lab.scheduler.plan import Chunk, StepPlan
from infra_lab.scheduler.request import Request
from infra_lab.simulator.calibrate import calibrate, fit_cost, shape_of_chunks
from infra_lab.simulator.calibrate_engine import timed_steps
from infra_lab.simulator.cost import LinearStepCost, StepShape
from infra_lab.simulator.cost_roofline import RooflineStepCost
from infra_lab.simulator.cost_table import TableStepCost
from kernels.chips import CHIPS

LLAMA_8B = ModelConfig(
    architecture="llama",
    vocab_size=128_256,
    hidden_size=4096,
    intermediate_size=14_336,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    max_position=131_072,
)
H100 = RooflineStepCost(chip=CHIPS["H100"], model=LLAMA_8B)


def plan_of(*chunks: tuple[int, int], unfinished: int = 0) -> StepPlan:
    """Chunks (start, tokens); the last `unfinished` of them stop short of the prompt's end."""
    requests = []
    for number, (start, num_tokens) in enumerate(chunks):
        more = number >= len(chunks) - unfinished
        requests.append(
            Request(token_ids=[1] * (start + num_tokens + more), request_id=str(number), params=SamplingParams())
        )
    return StepPlan(0, [Chunk(r, start, num) for r, (start, num) in zip(requests, chunks, strict=True)])


@pytest.mark.parametrize("context", [0, 37])
def test_flops_are_those_that_torch_counts(context: int) -> None:
    """Of a Hugging Face Llama of 3 layers without weights, decoding one token behind `context` others."""
    from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 176}
    config = LlamaConfig(
        **sizes, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, attn_implementation="eager"
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
        cache = DynamicCache(config=config)
        if context:
            model(torch.zeros(1, context, dtype=torch.long), past_key_values=cache)
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, 1, dtype=torch.long), past_key_values=cache)
    ours = ModelConfig(
        architecture="llama", **sizes, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=16, max_position=512
    )
    work = RooflineStepCost(chip=CHIPS["H100"], model=ours).work(plan_of((context, 1)))
    rotary = 2 * 8 * 1  # one outer product of 8 frequencies and a position
    assert counter.get_total_flops() - work.flops in (0, rotary)


def test_causal_attention_is_the_sum_over_tokens() -> None:
    whole = H100.work(plan_of((100, 50))).flops
    alone = [H100.work(plan_of((100 + i, 1), unfinished=1)).flops for i in range(49)]
    assert whole == sum(alone) + H100.work(plan_of((149, 1))).flops


def test_a_decode_of_llama_8b_reads_its_weights() -> None:
    # 8,030,261,248 parameters (published), without 128,256 · 4,096 rows of embeddings, at 2 bytes and 3.35 TB/s
    weights_s = (8_030_261_248 - 128_256 * 4096) * 2 / 3.35e12
    kv = 2 * 32 * 8 * 128 * 2  # K and V, layers, heads, size, bytes
    assert H100.step_s(plan_of((999, 1))) == pytest.approx(weights_s + kv * 1001 / 3.35e12)


def test_a_long_prompt_is_bound_by_arithmetic() -> None:
    tokens = 8192
    norms = 65 * 4096  # which are no matrices
    linear = 2 * (8_030_261_248 - 2 * 128_256 * 4096 - norms) * tokens + 2 * 128_256 * 4096
    attention = 4 * 4096 * 32 * tokens * (tokens + 1) / 2
    assert H100.step_s(plan_of((0, tokens))) == pytest.approx((linear + attention) / 989.4e12)


def test_tensor_parallel_divides_the_work_and_pays_for_two_all_reduces_a_layer() -> None:
    plan = plan_of((500, 1), (300, 1))
    four = replace(H100, tensor_parallel=4, link_bytes_per_s=450e9)
    reduced = 2 * 32 * (2 * 3 / 4 * (2 * 4096 * 2)) / 450e9
    assert four.step_s(plan) == pytest.approx(H100.step_s(plan) / 4 + reduced)
    assert replace(H100, launch_s=0.5, memory_efficiency=0.5).step_s(plan) == pytest.approx(0.5 + 2 * H100.step_s(plan))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"unit": "fp4"}, "unit"),
        ({"tensor_parallel": 3}, "tensor_parallel"),
        ({"tensor_parallel": 2}, "link_bytes_per_s"),
        ({"launch_s": -1.0}, "launch_s"),
        ({"compute_efficiency": 0.0}, "compute_efficiency"),
        ({"memory_efficiency": 1.5}, "memory_efficiency"),
        ({"kv_bytes": 0}, "kv_bytes"),
    ],
)
def test_no_roofline(change: dict[str, object], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        replace(H100, **change)  # type: ignore[arg-type]


def test_a_table_interpolates_as_torch_does() -> None:
    rng = random.Random(0)
    seconds = [[rng.random() for _ in range(5)] for _ in range(4)]
    table = TableStepCost(tokens=(0, 10, 20, 30), context=(0, 100, 200, 300, 400), seconds=tuple(map(tuple, seconds)))
    points = [(rng.uniform(-5, 40), rng.uniform(-50, 500)) for _ in range(200)]  # a fifth of them beyond the edge
    grid = torch.tensor([[context / 200 - 1, tokens / 15 - 1] for tokens, context in points], dtype=torch.float64)
    image = torch.tensor(seconds, dtype=torch.float64)[None, None]
    expected = torch.nn.functional.grid_sample(
        image, grid[None, None], mode="bilinear", padding_mode="border", align_corners=True
    )
    assert [table.seconds_at(*point) for point in points] == pytest.approx(expected.flatten().tolist())
    assert table.step_s(plan_of((90, 10), (195, 5))) == pytest.approx(table.seconds_at(15, 300))


def test_a_table_of_one_entry_is_a_constant() -> None:
    table = TableStepCost(tokens=(1,), context=(1,), seconds=((0.25,),))
    assert table.step_s(plan_of((7, 9))) == 0.25


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"tokens": ()}, "tokens"),
        ({"tokens": (2, 1)}, "tokens"),
        ({"context": (5, 5)}, "context"),
        ({"seconds": ((1.0, 2.0),)}, "seconds"),
        ({"seconds": ((1.0, 2.0), (1.0,))}, "seconds of 2 tokens"),
        ({"seconds": ((1.0, 2.0), (1.0, -2.0))}, "seconds of 2 tokens"),
    ],
)
def test_no_table(fields: dict[str, object], word: str) -> None:
    good: dict[str, object] = {"tokens": (1, 2), "context": (1, 9), "seconds": ((1.0, 2.0), (3.0, 4.0))}
    with pytest.raises(ConfigError, match=word):
        TableStepCost(**{**good, **fields})  # type: ignore[arg-type]


def recorded(chunks: list[tuple[int, int]], duration_s: float) -> StepRecord:
    return StepRecord(
        step=0,
        start_s=0.0,
        duration_s=duration_s,
        chunks=tuple(ChunkRecord("r", start, num_tokens, 1) for start, num_tokens in chunks),
        admitted=(),
        preempted=(),
        finished=(),
        num_running=0,
        num_waiting=0,
        used_blocks=0,
        total_blocks=1,
        copies=(),
    )


RATES = ("fixed_s", "per_token_s", "per_context_token_s", "per_request_s", "per_pair_s")


@pytest.mark.parametrize(
    "planted",
    [
        (0.004, 3e-5, 2e-7, 0.0, 0.0), (0.004, 3e-5, 2e-7, 4e-4, 5e-8), (0.0, 3e-5, 2e-7, 0.0, 0.0),
        (0.004, 0.0, 0.0, 0.0, 0.0), (0.0, 2.0, 0.0, 0.0, 0.0),
    ],
)  # fmt: skip
def test_calibration_finds_what_was_planted(planted: tuple[float, ...]) -> None:
    rng = random.Random(1)
    cost = LinearStepCost(**dict(zip(RATES, planted, strict=True)))
    steps = [recorded([(0, 1)], 99.0)]  # the first one, which is left out
    for _ in range(60):
        chunks = [(rng.randrange(2000), rng.choice([1, 1, 1, 200])) for _ in range(rng.randint(1, 9))]
        steps.append(recorded(chunks, cost.step_s(plan_of(*chunks))))
    found = calibrate(steps)
    assert [getattr(found.cost, name) for name in RATES] == pytest.approx(planted, abs=1e-9)
    assert found.num_steps == 60
    assert found.median_error < 1e-6


def test_no_coefficient_is_negative_and_the_rest_is_the_best_there_is() -> None:
    """Steps that get cheaper by the token: their slope would be negative, so it is 0, and the constant is the mean."""
    seconds = [0.011, 0.010, 0.009, 0.008, 0.007, 0.006]
    found = calibrate([recorded([(0, 10 * (i + 1))], s) for i, s in enumerate(seconds)], skip=0)
    assert [getattr(found.cost, name) for name in RATES[1:]] == [0.0] * 4
    assert found.cost.fixed_s == pytest.approx(sum(seconds) / 6)


def test_noise_leaves_the_total_where_it_was() -> None:
    """A fit of errors relative to the measured times would be 4 % too fast here: the slow steps would count for little."""
    rng = random.Random(2)
    steps = []
    for _ in range(400):
        chunks = [(rng.randrange(500), 1) for _ in range(rng.randint(1, 9))]
        steps.append(recorded(chunks, 0.01 * len(chunks) * rng.choice([0.8, 1.2])))
    assert calibrate(steps).total_error == pytest.approx(0.0, abs=0.005)


def test_calibration_to_a_real_engine() -> None:
    llm = LLM("tiny", dtype="float32", device="cpu", num_kv_blocks=64, max_batched_tokens=64, max_num_seqs=4)
    steps = timed_steps(llm.core)
    assert {step.shape.num_requests for step in steps} == {1, 2, 3, 4}
    assert any(step.shape.num_tokens == 64 for step in steps), "prompts in chunks"
    assert not llm.core.has_work
    assert not any(step.preempted for step in llm.recorder.steps)
    found = fit_cost(steps)
    recorded_too = calibrate(llm.recorder.steps)
    assert found.num_steps == len(steps) == recorded_too.num_steps - 2, "of three rounds, the first step of each is out"
    for calibration in (found, recorded_too):
        rates = [getattr(calibration.cost, name) for name in RATES]
        assert min(rates) >= 0
        assert max(rates) > 0


def test_a_recorded_step_has_the_shape_of_its_plan() -> None:
    chunks = [(90, 10), (195, 5), (7, 1)]
    assert shape_of_chunks(recorded(chunks, 1.0).chunks) == StepShape.of(plan_of(*chunks))


def test_too_few_steps() -> None:
    with pytest.raises(ConfigError, match="5 steps"):
        calibrate([recorded([(0, 1)], 1.0)] * 6)
