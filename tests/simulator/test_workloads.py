"""Lengths and sessions: their means, and that a session's turns really extend one another token by token."""

import numpy as np
import pytest

from infra_lab.errors import ConfigError
from infra_lab.scheduler.config import SchedulerConfig
from infra_lab.simulator.cost import LinearStepCost
from infra_lab.simulator.lengths import PUBLISHED, LengthModel, LognormalLength, published_lengths
from infra_lab.simulator.replay import simulate
from infra_lab.simulator.traced_request import Span, TracedRequest, stream_tokens
from infra_lab.simulator.workloads import SessionModel

N = 50_000


def test_lengths_have_the_mean_and_the_median_that_they_claim() -> None:
    length = LognormalLength.of_mean(300.0, 0.8)
    assert length.mean == pytest.approx(300.0)
    tokens = np.array(length.draw(N, np.random.default_rng(0)))
    deviation = 300.0 * np.sqrt(np.exp(0.8**2) - 1)
    assert tokens.mean() == pytest.approx(300.0, abs=4 * deviation / np.sqrt(N))
    assert np.median(tokens) == pytest.approx(300.0 * np.exp(-0.32), rel=0.02)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_lengths_fit_the_context(name: str) -> None:
    shapes = published_lengths(name, max_total=4096).draw(2_000, seed=1)
    assert all(min(shape) >= 1 and shape.total_tokens <= 4096 for shape in shapes)
    assert shapes == published_lengths(name, max_total=4096).draw(2_000, seed=1)


def test_splitwise_medians() -> None:
    shapes = published_lengths("azure-conversation", max_total=10**9).draw(N)
    assert np.median([shape.prompt_tokens for shape in shapes]) == pytest.approx(1020, rel=0.03)
    assert np.median([shape.output_tokens for shape in shapes]) == pytest.approx(129, rel=0.03)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: LognormalLength(median=0.5), "median"),
        (lambda: LognormalLength(median=5, sigma=-1.0), "sigma"),
        (lambda: published_lengths("netflix", max_total=9), "netflix"),
        (
            lambda: LengthModel(prompt=LognormalLength(median=5), output=LognormalLength(median=5), max_total=1),
            "max_total",
        ),
        (lambda: SessionModel(mean_turns=0.5), "mean_turns"),
        (lambda: SessionModel(mean_think_s=-1.0), "mean_think_s"),
        (lambda: SessionModel(system_tokens=8192), "max_total"),
        (lambda: TracedRequest(arrival_s=-1.0, spans=(Span(0, 1),), output_tokens=1), "arrival_s"),
        (lambda: TracedRequest(arrival_s=0.0, spans=(), output_tokens=1), "spans"),
        (lambda: TracedRequest(arrival_s=0.0, spans=(Span(0, 1),), output_tokens=0), "output_tokens"),
    ],
)
def test_no_workload(make: object, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        make()  # type: ignore[operator]


def test_streams_are_prefixes_of_themselves_and_differ_from_one_another() -> None:
    long = stream_tokens(Span(5, 3_000), 1_000)
    assert stream_tokens(Span(5, 17), 1_000) == long[:17]
    assert all(0 <= token < 1_000 for token in long)
    assert np.bincount(long, minlength=1_000).max() < 20  # 3 of each, so no token stands out
    others = {tuple(stream_tokens(Span(number, 16))) for number in range(2_000)}
    assert len(others) == 2_000


def test_each_turn_begins_with_all_that_was_said() -> None:
    requests = SessionModel(mean_turns=5.0, num_system_prompts=2).draw([float(i) for i in range(40)], seed=4)
    later = [request for request in requests if request.follows is not None]
    assert len(later) > 80
    for request in later:
        assert request.follows is not None
        before = requests[request.follows]
        said = before.prompt_token_ids() + before.answer_token_ids()
        assert request.prompt_token_ids()[: len(said)] == said
        assert len(said) < request.prompt_tokens
    beginnings = {tuple(request.prompt_token_ids()[:512]) for request in requests}
    assert len(beginnings) == 2


def test_turns_are_as_many_and_thoughts_as_long_as_asked_for() -> None:
    model = SessionModel(mean_turns=3.0, mean_think_s=7.0, max_total=10**9)
    requests = model.draw([0.0] * 3_000, seed=1)
    assert len(requests) / 3_000 == pytest.approx(3.0, abs=4 * np.sqrt(6 / 3_000))  # geometric: variance m(m - 1)
    thoughts = [request.arrival_s for request in requests if request.follows is not None]
    assert np.mean(thoughts) == pytest.approx(7.0, abs=4 * 7 / np.sqrt(len(thoughts)))


def test_the_prefix_cache_has_everything_but_the_last_question() -> None:
    model = SessionModel(mean_turns=6.0, mean_think_s=1.0)
    requests = model.draw([1000.0 * i for i in range(8)], seed=2)  # one session at a time, all of one system prompt
    config = SchedulerConfig(max_model_len=8192, max_num_seqs=4, max_batched_tokens=512)
    report = simulate(requests, config, LinearStepCost(fixed_s=0.01), num_kv_blocks=4096)
    assert report.num_served == len(requests)
    for request, served in zip(requests, report.served, strict=True):
        known = 512 if request.follows is None else requests[request.follows].prompt_tokens
        if served.index:
            answer = 0 if request.follows is None else requests[request.follows].output_tokens - 1
            assert served.cached_tokens == min(known + answer, served.prompt_tokens - 1) // 16 * 16
    without = simulate(requests, config, LinearStepCost(fixed_s=0.01), num_kv_blocks=4096, enable_prefix_cache=False)
    assert without.cached_tokens == 0


def test_a_turn_comes_after_the_answer_before_it_and_a_thought() -> None:
    requests = SessionModel(mean_turns=4.0, mean_think_s=3.0).draw([0.0, 0.5, 0.7], seed=6)
    config = SchedulerConfig(max_model_len=8192, max_num_seqs=2, max_batched_tokens=256)
    report = simulate(requests, config, LinearStepCost(fixed_s=0.02), num_kv_blocks=2048)
    for request, served in zip(requests, report.served, strict=True):
        base = 0.0 if request.follows is None else report.served[request.follows].last_token_s
        assert served.arrival_s == pytest.approx(base + request.arrival_s)
        assert served.first_token_s > served.arrival_s
