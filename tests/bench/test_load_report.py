"""The arithmetic of a report, on records whose times are written down."""

import json
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from infra_lab.bench.load import (
    Arrivals,
    LoadReport,
    Percentiles,
    RequestRecord,
    Slo,
    Target,
    parse_slo,
    synthetic_workload,
)
from infra_lab.bench.load.answer import AnswerError, AnswerReader
from infra_lab.bench.load.prompts import TokenScale
from infra_lab.bench.load.table import report_table
from infra_lab.errors import ConfigError

COUNTED = TokenScale(1.0, 0.0, is_measured=True)
TARGET = Target(url="http://127.0.0.1:1", model="m")


def record(index: int, first_s: float, gap_s: float, *, tokens: int = 5, **fields: Any) -> RequestRecord:
    """Due at `index` seconds, and sent then; its first token `first_s` later, the others `gap_s` apart."""
    times = [index + first_s + gap_s * number for number in range(tokens)]
    given = {
        "launched_s": float(index),
        "sent_s": float(index),
        "token_times_s": times,
        "ended_s": times[-1] if times else None,
        "prompt_tokens": 10,
        "counted_output_tokens": tokens,
    }
    return RequestRecord(index, float(index), 10, 5, **(given | fields))


def report(records: list[RequestRecord], *slos: Slo, scale: TokenScale = COUNTED) -> LoadReport:
    workload = synthetic_workload(Arrivals(rate_per_s=1, kind="constant"), num_requests=len(records) or 1)
    return LoadReport.of(TARGET, workload, records, slos=slos, scale=scale, max_in_flight=3, now_s=99.0)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50))
def test_percentiles_interpolate_between_ranks(values: list[float]) -> None:
    found = Percentiles.of(values)
    assert found is not None
    ordered = sorted(values)
    for rank, value in ((50, found.p50), (90, found.p90), (95, found.p95), (99, found.p99)):
        position = (len(ordered) - 1) * rank / 100
        low = int(position)
        high = min(low + 1, len(ordered) - 1)
        assert value == pytest.approx(ordered[low] + (position - low) * (ordered[high] - ordered[low]), abs=1e-6)
    assert found.max == max(values)
    assert found.mean == pytest.approx(np.mean(values))
    assert found.count == len(values)


def test_nothing_has_no_percentile_and_an_empty_run_has_a_report(tmp_path: Path) -> None:
    assert Percentiles.of([]) is None
    empty = report([])
    assert (empty.num_sent, empty.ttft_s, empty.requests_per_s, empty.asked_rate_per_s) == (0, None, 0.0, None)
    Console(quiet=True).print(report_table(empty))
    empty.write_json(tmp_path / "empty.json")


def test_latencies_rates_and_tokens() -> None:
    found = report([record(0, 0.1, 0.01), record(1, 0.3, 0.02), record(2, 0.2, 0.5)])
    assert found.ttft_s is not None
    assert found.ttft_s.p50 == pytest.approx(0.2)
    assert found.ttft_s.p90 == pytest.approx(0.28)
    assert found.tpot_s is not None
    assert found.tpot_s.p50 == pytest.approx(0.02)
    assert found.itl_s is not None
    assert found.itl_s.count == 12
    assert found.e2e_s is not None
    assert found.e2e_s.max == pytest.approx(2.2)
    assert found.duration_s == pytest.approx(4.2)
    assert found.requests_per_s == pytest.approx(3 / 4.2)
    assert found.output_tokens_per_s == pytest.approx(15 / 4.2)
    assert found.asked_rate_per_s == found.achieved_rate_per_s == 1.0
    assert found.warnings == []


def test_waiting_in_the_client_is_latency() -> None:
    """Coordinated omission: a request that was due at 1 s and got out at 3 s has waited 2 s for its first token."""
    late = record(1, 2.1, 0.01, launched_s=1.0, sent_s=3.0)
    assert late.ttft_s == pytest.approx(2.1)
    assert late.e2e_s == pytest.approx(2.14)
    found = report([record(0, 0.1, 0.01), late])
    assert found.queued_s is not None
    assert found.queued_s.max == 2.0
    assert found.achieved_rate_per_s == pytest.approx(1 / 3)
    assert found.asked_rate_per_s == 1.0
    assert "1 requests waited for one of 1024 connections" in found.warnings[0]


def test_goodput_counts_requests_that_keep_every_limit() -> None:
    records = [
        record(0, 0.1, 0.01),
        record(1, 0.6, 0.01),  # late
        record(2, 0.1, 0.06),  # slow
        record(3, 0.1, 0.01, error="HTTP 500"),  # failed
        record(4, 0.1, 0.9, tokens=1),  # one token has no TPOT
    ]
    found = report(records, parse_slo("ttft:500"), parse_slo("tpot:50")).goodput
    assert found is not None
    assert (found.num_good, found.share) == (2, 0.4)
    assert found.per_s == pytest.approx(2 / 4.1)
    assert report(records).goodput is None


def test_one_long_gap_breaks_the_itl_limit_and_not_the_tpot_limit() -> None:
    stutter = record(0, 0.1, 0.0, token_times_s=[0.1, 0.11, 0.12, 0.32, 0.33])
    assert parse_slo("tpot:60").is_met(stutter)
    assert not parse_slo("itl:150").is_met(stutter)
    assert parse_slo("itl:201").is_met(stutter)
    assert parse_slo("e2e:330").is_met(stutter)
    assert not parse_slo("e2e:329").is_met(stutter)


@pytest.mark.parametrize("text", ["ttft", "ttft:", "ttft:x", "ttft:0", "ttft:-1", "ttft:nan", "p99:5", "", ":5"])
def test_an_slo_that_is_none(text: str) -> None:
    with pytest.raises(ConfigError, match="ttft:500"):
        parse_slo(text)


@pytest.mark.parametrize(
    ("changed", "doubt"),
    [
        ({"launched_s": 5.0, "sent_s": 5.0}, "generator itself was late"),
        ({"counted_output_tokens": None}, "counted as tokens"),
        ({"counted_output_tokens": 10, "token_times_s": [5.1]}, "10.0 tokens came in an event"),
        ({"prompt_tokens": 20}, "prompts have 200%"),
        ({"counted_output_tokens": 2, "token_times_s": [5.1, 5.2]}, "outputs have 40%"),
        ({"error": "timeout"}, None),
        ({}, None),
    ],
)
def test_what_makes_a_measurement_doubtful(changed: dict[str, Any], doubt: str | None) -> None:
    found = report([record(0, 0.1, 0.01, **changed)]).warnings
    assert len(found) == (doubt is not None)
    assert doubt is None or doubt in found[0]


def test_a_word_taken_for_a_token_is_said() -> None:
    assert "a word was taken for a token" in report([record(0, 0.1, 0.01)], scale=TokenScale()).warnings[0]


def test_errors_are_counted_by_kind_with_the_first_of_each() -> None:
    failures = [("HTTP 429", "first"), ("timeout", "late"), ("HTTP 429", "second")]
    records = [record(i, 0.1, 0.01, error=kind, error_detail=text) for i, (kind, text) in enumerate(failures)]
    found = report([*records, record(3, 0.1, 0.01)])
    assert found.errors == {"HTTP 429": 2, "timeout": 1}
    assert found.error_details == {"HTTP 429": "first", "timeout": "late"}
    assert (found.num_ok, found.num_sent, found.output_tokens) == (1, 4, 5)


def test_table_and_json_say_the_same(tmp_path: Path) -> None:
    found = report([record(0, 0.1, 0.01), record(1, 0.3, 0.02, error="HTTP [bold]")], parse_slo("ttft:150"))
    written = StringIO()
    Console(width=120, file=written).print(report_table(found))
    text = written.getvalue()
    assert "100.0" in text
    assert "goodput" in text
    assert "50% of requests kept ttft ≤ 150 ms" in text
    assert "HTTP [bold]" in text
    found.write_json(tmp_path / "report.json")
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["ttft_s"]["p50"] == pytest.approx(0.1)
    assert "records" not in content
    found.write_json(tmp_path / "report.json", with_records=True)
    assert len(json.loads((tmp_path / "report.json").read_text())["records"]) == 2


def read(*events: str) -> RequestRecord:
    found = RequestRecord(0, 0.0, 1, 1)
    reader = AnswerReader(found)
    for number, event in enumerate(events):
        reader.take(event, float(number))
    reader.end(float(len(events)))
    return found


def choice(**fields: Any) -> str:
    return json.dumps({"choices": [{"index": 0, **fields}]})


def test_a_role_and_an_ending_are_no_tokens() -> None:
    events = [
        choice(delta={"role": "assistant", "content": ""}),
        choice(delta={"reasoning_content": "hm"}),
        choice(delta={"content": "a"}),
        choice(delta={"tool_calls": [{"index": 0}]}),
        choice(delta={}, finish_reason="stop"),
        json.dumps({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3,
                                             "prompt_tokens_details": {"cached_tokens": 4}}}),
        "[DONE]",
    ]  # fmt: skip
    found = read(*events)
    assert found.token_times_s == [1.0, 2.0, 3.0]
    assert (found.prompt_tokens, found.output_tokens, found.cached_tokens, found.finish_reason) == (7, 3, 4, "stop")


def test_an_answer_without_visible_text_has_its_first_token_at_its_end() -> None:
    assert read(choice(text="", finish_reason="stop"), "[DONE]").ttft_s == 2.0


@pytest.mark.parametrize(
    ("events", "kind"),
    [
        ([choice(text="a")], "incomplete"),
        ([], "incomplete"),
        (["{"], "malformed event"),
        (["[1]"], "error event"),
        (['{"error": {"message": "no"}}'], "error event"),
    ],
)
def test_an_answer_that_is_none(events: list[str], kind: str) -> None:
    with pytest.raises(AnswerError) as caught:
        read(*events)
    assert caught.value.kind == kind
