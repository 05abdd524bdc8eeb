"""Sampling against transformers' processors, against exact distributions in float64, and against itself in a batch."""

import math
from collections import Counter
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation import logits_process as hf

import kernels
from infra_lab.engine.sampling import Sampler, validate
from infra_lab.engine.sampling.draw import draw
from infra_lab.engine.sampling.penalties import adjust
from infra_lab.engine.sampling.uniform import counter, uniform
from infra_lab.errors import InvalidRequestError
from infra_lab.sampling_params import SamplingParams
from infra_lab.scheduler.plan import NO_TOKEN
from infra_lab.scheduler.request import Request
from kernels.philox import philox

VOCAB = 40


def request(prompt: list[int] | None = None, output: list[int] | None = None, **options: Any) -> Request:
    params = SamplingParams(**options)
    made = Request(token_ids=list(prompt or [1]), request_id="r", params=params, seed=params.seed or 0)
    made.token_ids += output or []
    made.min_total_tokens = made.num_prompt_tokens + params.min_tokens
    return made


def random_logits(rows: int, seed: int = 0, vocab: int = VOCAB) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * 3


def survivors(logits: torch.Tensor, params: SamplingParams) -> set[int]:
    """Every token that can be drawn: sweep the uniform finely over the whole range."""
    grid = [i / 4000 for i in range(4000)] + [1 - 2.0**-53]
    return set(draw(logits.expand(len(grid), -1), [params] * len(grid), grid).tolist())


class TestAgainstTransformers:
    @pytest.mark.parametrize("seed", range(5))
    @pytest.mark.parametrize(
        ("params", "processors"),
        [
            ({"top_k": 7}, [hf.TopKLogitsWarper(7)]),
            ({"top_p": 0.6}, [hf.TopPLogitsWarper(0.6)]),
            ({"top_k": 12, "top_p": 0.8}, [hf.TopKLogitsWarper(12), hf.TopPLogitsWarper(0.8)]),
            ({"min_p": 0.1}, [hf.MinPLogitsWarper(0.1)]),
            ({"temperature": 2.0, "top_p": 0.7}, [hf.TemperatureLogitsWarper(2.0), hf.TopPLogitsWarper(0.7)]),
            ({"temperature": 0.5, "min_p": 0.05}, [hf.TemperatureLogitsWarper(0.5), hf.MinPLogitsWarper(0.05)]),
        ],
        ids=lambda value: str(value) if isinstance(value, dict) else "",
    )
    def test_filters_keep_the_same_tokens(self, params: dict[str, Any], processors: list[Any], seed: int) -> None:
        logits = random_logits(1, seed) / 2
        expected = logits
        for processor in processors:
            expected = processor(None, expected)
        probabilities = torch.softmax(expected[0].double(), dim=0)
        kept = set(torch.nonzero(probabilities > 1e-3).flatten().tolist())  # the grid sees all of these
        possible = set(torch.nonzero(probabilities > 0).flatten().tolist())
        assert kept <= survivors(logits, SamplingParams(**params)) <= possible

    def test_repetition_penalty(self) -> None:
        logits, tokens = random_logits(1), [3, 9, 9, 17]
        expected = hf.RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([tokens]), logits.clone())
        adjust(logits, [request(tokens[:2], tokens[2:], repetition_penalty=1.7)])
        torch.testing.assert_close(logits, expected)


def test_presence_and_frequency_penalties_count_the_output_only() -> None:
    logits = random_logits(1)
    expected = logits.double()
    expected[0, 5] -= 0.7 + 3 * 0.3
    expected[0, 6] -= 0.7 + 1 * 0.3
    adjust(logits, [request([7, 7, 5], [5, 5, 6, 5], presence_penalty=0.7, frequency_penalty=0.3)])
    torch.testing.assert_close(logits.double(), expected, atol=1e-6, rtol=0)


def test_bias_and_minimum_length() -> None:
    logits = torch.zeros(3, VOCAB)
    rows = [
        request(logit_bias={4: 5.0, 2: -100.0}),
        request(output=[8], min_tokens=2),
        request(output=[8, 8], min_tokens=2),
    ]
    for row in rows[1:]:
        row.stop_token_ids = frozenset({0, 3})
    adjust(logits, rows)
    assert logits[0, 4] == 5
    assert logits[0, 2] == -100
    assert logits[1, [0, 3]].tolist() == [-math.inf, -math.inf]
    assert logits[2].abs().sum() == 0, "two tokens were asked for, two are there"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.6},
        {"top_k": 5},
        {"top_p": 0.8},
        {"min_p": 0.15, "temperature": 1.3},
        {"top_k": 8, "top_p": 0.9, "temperature": 1.5, "min_p": 0.02},
    ],
    ids=str,
)
def test_distribution(options: dict[str, Any]) -> None:
    """Chi-squared over 20,000 draws against probabilities worked out one by one in float64."""
    logits, params, num_draws = random_logits(1, 5, vocab=12) / 4, SamplingParams(**options), 20_000
    uniforms = [uniform(77, 0, position) for position in range(num_draws)]
    counts = Counter(draw(logits.expand(num_draws, -1), [params] * num_draws, uniforms).tolist())
    expected = exact_probabilities(logits[0].tolist(), params)
    assert set(counts) <= {token for token, probability in enumerate(expected) if probability > 0}
    cells = [(counts[token], num_draws * probability) for token, probability in enumerate(expected) if probability > 0]
    chi_squared = sum((seen - wanted) ** 2 / wanted for seen, wanted in cells)
    degrees = len(cells) - 1
    p_value = torch.special.gammaincc(torch.tensor(degrees / 2), torch.tensor(chi_squared / 2)).item()
    assert p_value > 0.001


def exact_probabilities(logits: list[float], params: SamplingParams) -> list[float]:
    weights = {token: math.exp(logit / params.temperature) for token, logit in enumerate(logits)}
    largest = max(weights.values())
    weights = {token: weight for token, weight in weights.items() if weight >= params.min_p * largest}
    ranked = sorted(weights, key=lambda token: -weights[token])[: params.top_k or None]
    total, kept, reached = sum(weights[token] for token in ranked), [], 0.0
    for token in ranked:
        if kept and reached >= params.top_p * total and params.top_p < 1:
            break
        kept.append(token)
        reached += weights[token]
    return [weights[token] / reached if token in kept else 0.0 for token in range(len(logits))]


def test_a_wrong_distribution_is_noticed() -> None:
    """The chi-squared test can fail: a filter that forgets to renormalise shows up as a wrong count."""
    logits = random_logits(1, 5, vocab=12) / 4
    right = exact_probabilities(logits[0].tolist(), SamplingParams(top_k=5))
    wrong = exact_probabilities(logits[0].tolist(), SamplingParams())
    assert sum(20_000 * (a - b) ** 2 / b for a, b in zip(wrong, right, strict=True) if b) > 100


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    number=st.one_of(st.floats(0, 1, exclude_max=True), st.just(1 - 2.0**-53), st.just(0.0)),
    spread=st.sampled_from([0.0, 1.0, 30.0, 1e4]),
    options=st.fixed_dictionaries(
        {
            "temperature": st.sampled_from([1e-6, 0.3, 1.0, 5.0, 100.0]),
            "top_k": st.sampled_from([0, 1, 3, 1000]),
            "top_p": st.sampled_from([1e-9, 0.5, 0.999999, 1.0]),
            "min_p": st.sampled_from([0.0, 0.2, 1.0]),
        }
    ),
    num_masked=st.integers(0, VOCAB - 1),
)
def test_a_token_of_zero_probability_is_never_drawn(
    seed: int, number: float, spread: float, options: dict[str, Any], num_masked: int
) -> None:
    logits = random_logits(1, seed % 2**31) * spread
    masked = torch.randperm(VOCAB, generator=torch.Generator().manual_seed(seed % 2**31))[:num_masked]
    logits[0, masked] = -math.inf
    token = int(draw(logits, [SamplingParams(**options)], [number]))
    assert 0 <= token < VOCAB
    assert token not in masked
    if options["top_k"] == 1 or options["min_p"] == 1.0:
        assert logits[0, token] == logits.max()


OPTIONS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.8, "seed": 1},
    {"top_k": 5, "seed": 2, "logprobs": 3},
    {"top_p": 0.7, "seed": 3, "repetition_penalty": 1.4},
    {"min_p": 0.1, "temperature": 1.9, "seed": 4},
    {"temperature": 0.0, "presence_penalty": 2.0, "logprobs": 0},
    {"top_k": 3, "top_p": 0.5, "seed": 5, "logit_bias": {7: 9.0}},
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_request_gets_the_same_token_alone_and_in_any_batch(dtype: torch.dtype) -> None:
    logits, requests = random_logits(len(OPTIONS)).to(dtype), [request([2, 3], [4, 5], **o) for o in OPTIONS]
    together = Sampler().sample(logits, requests)
    for row, single in enumerate(requests):
        alone = Sampler().sample(logits[row : row + 1], [single])
        assert alone.token_ids == together.token_ids[row : row + 1]
        assert alone.logprobs.get(0) == together.logprobs.get(row)
    order = [4, 0, 6, 2, 1, 5, 3]
    shuffled = Sampler().sample(logits[order], [requests[i] for i in order])
    assert shuffled.token_ids == [together.token_ids[i] for i in order]


def test_the_logits_are_left_as_they_were() -> None:
    logits = random_logits(len(OPTIONS))
    before = logits.clone()
    Sampler().sample(logits, [request([2], [4], **o) for o in OPTIONS])
    assert torch.equal(logits, before)


def test_logprobs_are_of_the_raw_distribution() -> None:
    logits = random_logits(1)
    sampled = Sampler().sample(logits, [request(temperature=0.0, logit_bias={11: 100.0}, logprobs=4)])
    exact = torch.log_softmax(logits[0].double(), dim=0)
    entry = sampled.logprobs[0]
    assert sampled.token_ids == [11]
    assert entry.logprob == pytest.approx(exact[11].item(), abs=1e-5)
    assert entry.rank == int((exact > exact[11]).sum()) + 1
    values, ids = exact.topk(4)
    assert [token for token, _ in entry.top] == ids.tolist()
    assert [value for _, value in entry.top] == pytest.approx(values.tolist(), abs=1e-5)


def test_broken_rows_fail_alone() -> None:
    logits = random_logits(4)
    logits[1, 3] = math.nan
    logits[2] = -math.inf
    sampled = Sampler().sample(logits, [request(temperature=t) for t in (0.0, 0.0, 1.0, 1.0)])
    assert sampled.token_ids[1:3] == [NO_TOKEN, NO_TOKEN]
    assert set(sampled.errors) == {1, 2}
    assert "nan" in sampled.errors[1]
    assert min(sampled.token_ids[0], sampled.token_ids[3]) >= 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spread", [0.0, 0.4, 3.0])
def test_the_kernel_chooses_what_torch_chooses(dtype: torch.dtype, spread: float) -> None:
    """With logits that tie at the border of top-k and within the nucleus, masked ones, and rows without a choice."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    logits = random_logits(3 * len(OPTIONS), seed=8).mul(spread).to(dtype).to(device)
    logits[::2, 11] = -math.inf
    logits[-1], logits[-2, 5] = -math.inf, math.nan
    requests = [request([2, 3], [4, 5], **{**o, "n": 1, "seed": i}) for i, o in enumerate(OPTIONS * 3)]
    for row, made in enumerate(requests):
        made.sample_index = row % 3
    chosen = {}
    for mode in ("reference", "triton"):
        with kernels.use(mode):
            chosen[mode] = [
                Sampler().sample(logits[: len(OPTIONS) * count], requests[: len(OPTIONS) * count]) for count in (1, 3)
            ]
    assert [s.token_ids for s in chosen["triton"]] == [s.token_ids for s in chosen["reference"]]
    assert [s.errors for s in chosen["triton"]] == [s.errors for s in chosen["reference"]]
    assert set(chosen["triton"][1].errors) == {len(requests) - 2, len(requests) - 1}


def test_temperatures_that_a_float_cannot_hold() -> None:
    logits = torch.tensor([[0.0, -math.inf, 5.0, 5.0]])
    for mode in ("reference", "triton"):
        with kernels.use(mode):
            for temperature, possible in ((1e-300, {2, 3}), (1e300, {0, 2, 3})):
                rows = [request(temperature=temperature, seed=seed) for seed in range(30)]
                assert set(Sampler().sample(logits.expand(30, -1), rows).token_ids) == possible


@pytest.mark.parametrize("top_p", [1.0, 0.75])
def test_equals_at_a_border_are_kept_by_lowest_id(top_p: float) -> None:
    logits = torch.tensor([[1.0, 3.0, 1.0, 2.0] + [1.0] * 200])
    kept = survivors(logits, SamplingParams(top_k=4, top_p=top_p, temperature=1e6))
    assert kept == ({0, 1, 2, 3} if top_p == 1.0 else {0, 1, 3}), "at this temperature all are as probable"


def test_a_uniform_is_philox_keyed_by_seed_and_counted_by_sample_and_position() -> None:
    for seed, sample_index, position in ((0, 0, 0), (5, 2, 7), (-3, 0, 2**31), (2**63 - 1, 1, 0), (2**64 + 5, 2, 7)):
        place = counter(seed, sample_index, position)
        torch.tensor(list(place), dtype=torch.int64)  # which raises for more than 64 bits
        exact = Fraction(philox(seed, sample_index * 2**32 + position), 2**64)
        assert 0 <= exact - Fraction(uniform(seed, sample_index, position)) < Fraction(1, 2**53)


def test_uniforms_are_uniform_and_depend_on_every_part() -> None:
    numbers = [uniform(seed, index, position) for seed in range(20) for index in range(5) for position in range(100)]
    assert len(set(numbers)) == len(numbers)
    assert all(0 <= number < 1 for number in numbers)
    assert sum(numbers) / len(numbers) == pytest.approx(0.5, abs=0.02)
    assert uniform(1, 2, 3) == uniform(1, 2, 3)


def test_what_only_the_vocabulary_tells() -> None:
    validate(SamplingParams(logit_bias={39: 1.0}, stop_token_ids=[0], logprobs=20), VOCAB)
    for options in ({"logit_bias": {40: 1.0}}, {"stop_token_ids": [-1]}):
        with pytest.raises(InvalidRequestError, match="outside the vocabulary of 40"):
            validate(SamplingParams(**options), VOCAB)
