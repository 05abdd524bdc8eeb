"""What will be sent is known before the first request: arrivals, lengths, shared beginnings, traces."""

import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra_lab.bench.load import Arrivals, Lengths, SharedPrefix, synthetic_workload, trace_workload
from infra_lab.bench.load.arrivals import ArrivalKind
from infra_lab.bench.load.prompts import WORDS, TokenScale, probe_text, scale_from_probes, write_prompt
from infra_lab.errors import ConfigError


def gaps(arrivals: Arrivals, number: int = 20_000) -> list[float]:
    return [after - before for before, after in pairwise(arrivals.times_s(num_requests=number, seed=1))]


@pytest.mark.parametrize(
    ("arrivals", "variation"),
    [
        (Arrivals(rate_per_s=4), 1.0),
        (Arrivals(rate_per_s=4, kind="gamma", burstiness=0.25), 2.0),
        (Arrivals(rate_per_s=4, kind="gamma", burstiness=100), 0.1),
        (Arrivals(rate_per_s=4, kind="constant"), 0.0),
    ],
)
def test_gaps_have_the_mean_and_the_spread_of_their_process(arrivals: Arrivals, variation: float) -> None:
    found = gaps(arrivals)
    assert fmean(found) == pytest.approx(1 / 4, rel=0.05)
    assert pstdev(found) / fmean(found) == pytest.approx(variation, rel=0.05, abs=1e-6)


@given(
    kind=st.sampled_from(["poisson", "gamma", "constant"]),
    rate=st.floats(0.1, 1e4),
    number=st.integers(1, 200),
    duration=st.floats(0.01, 50),
    seed=st.integers(0, 2**64),
)
def test_times_begin_at_zero_ascend_and_end_in_time(
    kind: ArrivalKind, rate: float, number: int, duration: float, seed: int
) -> None:
    arrivals = Arrivals(rate_per_s=rate, kind=kind)
    both = arrivals.times_s(num_requests=number, duration_s=duration, seed=seed)
    counted = arrivals.times_s(num_requests=number, seed=seed)
    assert counted[0] == 0.0
    assert counted == sorted(counted)
    assert len(counted) == number
    assert both == [time for time in counted if time < duration]


def test_an_infinite_rate_is_everything_at_once() -> None:
    workload = synthetic_workload(Arrivals(rate_per_s=math.inf), num_requests=5)
    assert [request.arrival_s for request in workload.requests] == [0.0] * 5
    assert workload.rate_per_s is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Arrivals(rate_per_s=0), "rate is 0"),
        (lambda: Arrivals(rate_per_s=math.nan), "rate is nan"),
        (lambda: Arrivals(rate_per_s=1, kind="weekly"), "known: poisson, gamma, constant"),  # type: ignore[arg-type]
        (lambda: Arrivals(rate_per_s=1, burstiness=2), "use gamma"),
        (lambda: Arrivals(rate_per_s=1, kind="gamma", burstiness=0), "burstiness is 0"),
        (lambda: Arrivals(rate_per_s=1).times_s(), "give the number"),
        (lambda: Arrivals(rate_per_s=1).times_s(num_requests=0), "number of requests is 0"),
        (lambda: Arrivals(rate_per_s=1).times_s(duration_s=-1), "duration is -1"),
        (lambda: Arrivals(rate_per_s=math.inf).times_s(duration_s=1), "more than 1000000 requests"),
        (lambda: Lengths(prompt_tokens=4000, output_tokens=100), "more than max_total = 4096"),
        (lambda: SharedPrefix(share=1.5), "share of a prompt is 1.5"),
        (lambda: SharedPrefix(num_prefixes=0), "prefixes is 0"),
    ],
)
def test_what_makes_no_load(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_the_same_seed_is_the_same_plan_and_lengths_do_not_move_arrivals() -> None:
    def plan(seed: int, output: int = 128) -> Any:
        lengths = Lengths(sigma=0.7, output_tokens=output)
        return synthetic_workload(Arrivals(rate_per_s=2), num_requests=50, lengths=lengths, seed=seed)

    assert plan(3) == plan(3)
    assert plan(3) != plan(4)
    assert [r.arrival_s for r in plan(3).requests] == [r.arrival_s for r in plan(3, output=9).requests]


def test_prompts_share_what_they_should_and_nothing_else() -> None:
    workload = synthetic_workload(
        Arrivals(rate_per_s=1),
        num_requests=40,
        lengths=Lengths(prompt_tokens=200, sigma=0.5),
        shared_prefix=SharedPrefix(share=0.5, num_prefixes=2),
    )
    prompts = {r: write_prompt(r, TokenScale(), workload.seed).split() for r in workload.requests}
    assert {r.prefix for r in workload.requests} == {0, 1}
    for one, its_words in prompts.items():
        assert len(its_words) == one.shape.prompt_tokens
        for other, words in prompts.items():
            alike = next((i for i, (a, b) in enumerate(zip(its_words, words, strict=False)) if a != b), len(words))
            if one is other:
                continue
            if one.prefix != other.prefix:
                assert alike < 5
            else:
                shorter = min(one.shared_tokens, other.shared_tokens)
                assert shorter <= alike < shorter + 5


@given(per_word=st.integers(1, 8), overhead=st.integers(0, 30), asked=st.integers(1, 3000))
def test_a_prompt_has_the_tokens_asked_for_by_the_servers_count(per_word: int, overhead: int, asked: int) -> None:
    def count(text: str) -> int:
        return per_word * len(text.split()) + overhead

    scale = scale_from_probes(count(probe_text(1)), count(probe_text(2)))
    assert scale == TokenScale(per_word, overhead, True)
    request = synthetic_workload(
        Arrivals(rate_per_s=1), num_requests=1, lengths=Lengths(prompt_tokens=asked, output_tokens=1)
    ).requests[0]
    assert abs(count(write_prompt(request, scale)) - max(asked, per_word + overhead)) <= per_word


def test_a_server_that_cannot_count_leaves_a_word_to_be_a_token() -> None:
    assert scale_from_probes(5, 5) == TokenScale()
    assert len(set(WORDS)) == len(WORDS)


ROWS = [(12.0, 30, 5), (10.0, 10, 4), (11.5, 20, 3)]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_trace_is_replayed_in_order_from_zero(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"trace{suffix}"
    names = ("arrival_s", "prompt_tokens", "output_tokens")
    if suffix == ".csv":
        lines = ["user," + ",".join(names), *(f"a,{time},{prompt},{output}" for time, prompt, output in ROWS)]
    else:
        lines = [json.dumps(dict(zip(names, row, strict=True), user="a")) for row in ROWS] + [""]
    path.write_text("\ufeff" + "\n".join(lines))
    requests = trace_workload(path, speed=2).requests
    assert [(r.arrival_s, *r.shape) for r in requests] == [(0.0, 10, 4), (0.75, 20, 3), (1.0, 30, 5)]
    assert len(trace_workload(path, num_requests=2).requests) == 2
    assert len(trace_workload(path, duration_s=1.6).requests) == 2
    assert trace_workload(path).rate_per_s == 1.0


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "arrival_s,prompt_tokens\n0,5\n", "line 2: KeyError 'output_tokens'"),
        ("a.csv", "arrival_s,prompt_tokens,output_tokens\n0,5,1\nx,5,1\n", "line 3: ValueError"),
        ("a.csv", "arrival_s,prompt_tokens,output_tokens\n0,0,1\n", "line 2: .*at least 1 token"),
        ("a.csv", "arrival_s,prompt_tokens,output_tokens\nnan,5,1\n", "line 2: .*finite"),
        ("a.csv", "", "holds no request"),
        ("a.jsonl", '{"arrival_s": 0\n', "line 1: not JSON"),
        ("a.jsonl", "[1]\n", "line 1: a list"),
    ],
)
def test_a_broken_trace_says_where(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=message):
        trace_workload(tmp_path / name)
    with pytest.raises(ConfigError, match="cannot read the trace"):
        trace_workload(tmp_path / "absent.csv")
