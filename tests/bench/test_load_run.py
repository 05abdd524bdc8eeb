"""The generator against a small real server: an open loop, its bound, and every way in which a request can fail."""

import asyncio
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from infra_lab.bench.load import (
    Arrivals,
    Lengths,
    LoadReport,
    LoadRun,
    RequestRecord,
    Target,
    TargetError,
    Workload,
    run_load,
    synthetic_workload,
)
from infra_lab.errors import ConfigError
from tests.bench.load_server import OVERHEAD, TOKENS_PER_WORD, Scripted, scripted_server


@pytest.fixture
def server() -> Iterator[Scripted]:
    with scripted_server() as scripted:
        yield scripted


def workload(number: int = 12, rate_per_s: float = 400.0, output: int = 4) -> Workload:
    lengths = Lengths(prompt_tokens=43, output_tokens=output)
    return synthetic_workload(Arrivals(rate_per_s=rate_per_s), num_requests=number, lengths=lengths)


def load(target: Target, plan: Workload) -> LoadReport:
    return asyncio.run(asyncio.wait_for(run_load(target, plan), 60))


def target(server: Scripted, behaviour: str = "good", **fields: Any) -> Target:
    return Target(url=server.url, extra_body={"behaviour": behaviour}, **fields)


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
def test_every_request_is_answered_and_counted(server: Scripted, endpoint: Any) -> None:
    plan = workload()
    report = load(target(server, endpoint=endpoint, api_key="sk-1"), plan)
    assert (report.num_ok, report.num_sent, report.errors, report.model) == (12, 12, {}, "scripted")
    assert report.output_tokens == 48
    assert [len(record.token_times_s) for record in report.records] == [4] * 12
    words = (43 - OVERHEAD) // TOKENS_PER_WORD
    assert report.prompt_tokens == 12 * (words * TOKENS_PER_WORD + OVERHEAD)
    assert all(body["max_tokens"] == 4 and body["ignore_eos"] for body in server.bodies)
    assert {header["authorization"] for header in server.headers} == {"Bearer sk-1"}
    prompts = [body.get("prompt") or body["messages"][0]["content"] for body in server.bodies]
    assert len(set(prompts)) == 12
    assert not report.is_partial


def test_arrivals_do_not_wait_for_answers(server: Scripted) -> None:
    """The server answers nobody before all requests are in: a closed loop would never get that far."""
    server.gate_size = 12
    plan = workload()
    report = load(target(server, "gate"), plan)
    assert report.num_ok == 12
    assert report.max_in_flight == server.max_open == 12
    assert [record.scheduled_s for record in report.records] == [request.arrival_s for request in plan.requests]


def test_the_gate_stops_a_loop_that_waits(server: Scripted) -> None:
    """The same test with a generator that is not open must fail: one connection makes it a closed loop."""
    server.gate_size = 12
    report = load(target(server, "gate", max_connections=1, timeout_s=0.5), workload())
    assert report.num_ok == 0
    assert report.errors == {"timeout": 12}
    assert server.max_open <= 2  # on a busy machine the server hears late that the one before has given up


def test_connections_are_bounded_and_waiting_for_one_counts(server: Scripted) -> None:
    plan = synthetic_workload(
        Arrivals(rate_per_s=1e6, kind="constant"),
        num_requests=30,
        lengths=Lengths(prompt_tokens=9, output_tokens=50),
    )
    report = load(target(server, max_connections=3), plan)
    assert report.num_ok == 30
    assert server.max_open <= 3
    assert report.max_in_flight > 3
    for record in report.records:
        assert record.scheduled_s <= (record.launched_s or 0) <= (record.sent_s or 0) < record.token_times_s[0]
        assert record.ttft_s == record.token_times_s[0] - record.scheduled_s
    assert any("waited for one of 3 connections" in warning for warning in report.warnings)


@pytest.mark.parametrize(
    ("behaviour", "kind", "detail"),
    [
        ("busy", "HTTP 429", "come back later"),
        ("breaks", "incomplete", "after 2 pieces"),
        ("error", "error event", "out of memory"),
        ("garbage", "malformed event", "{oh"),
    ],
)
def test_failures_are_told_apart(server: Scripted, behaviour: str, kind: str, detail: str) -> None:
    report = load(target(server, behaviour), workload(3))
    assert report.errors == {kind: 3}
    assert detail in report.error_details[kind]
    assert report.ttft_s is None


def test_a_request_that_takes_too_long_has_failed(server: Scripted) -> None:
    report = load(target(server, "stall", timeout_s=0.2), workload(3))
    assert report.errors == {"timeout": 3}


def test_a_server_without_usage_has_its_events_counted(server: Scripted) -> None:
    report = load(target(server, "no usage"), workload(3))
    assert report.output_tokens == 12
    assert any("counted as tokens" in warning for warning in report.warnings)


def test_stop_keeps_what_there_is(server: Scripted) -> None:
    async def main() -> LoadReport:
        over: list[RequestRecord] = []
        run = LoadRun(target(server, "gate", model="scripted"), workload(200, 100.0), on_record=over.append)
        server.gate_size = 10**6
        task = asyncio.create_task(run.run())
        while len(server.bodies) < 5 and not task.done():
            await asyncio.sleep(0.005)
        assert run.report().num_ok == 0
        run.stop()
        report = await asyncio.wait_for(task, 30)
        assert run.num_in_flight == 0
        assert {record.index for record in over} == {record.index for record in run.records}
        return report

    report = asyncio.run(main())
    assert report.is_partial
    assert 5 <= report.num_sent < 200
    assert report.errors == {"stopped": report.num_sent}


def test_a_cancelled_run_leaves_nothing_behind(server: Scripted) -> None:
    async def main() -> None:
        server.gate_size = 10**6
        run = LoadRun(target(server, "gate"), workload(5))
        task = asyncio.create_task(run.run())
        while server.open_now < 5 and not task.done():
            await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert run.num_in_flight == 0
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


def test_no_server_is_said_before_the_run() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(TargetError, match="is an OpenAI-compatible server running there"):
            load(Target(url=url), workload(1))


def test_a_server_that_is_something_else_is_said_before_the_run(server: Scripted) -> None:
    with pytest.raises(TargetError, match="answers 404"):
        load(Target(url=server.url + "/v2"), workload(1))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"url": "127.0.0.1:8000"}, "expected something like http://"),
        ({"url": "http://a", "endpoint": "embeddings"}, "known: completions, chat"),
        ({"url": "http://a", "timeout_s": 0}, "timeout is 0"),
        ({"url": "http://a", "max_connections": 0}, "bound on connections is 0"),
    ],
)
def test_what_cannot_be_a_target(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Target(**fields)


def test_the_key_is_not_printed() -> None:
    assert "sk-1" not in repr(Target(url="http://a", api_key="sk-1"))
    assert Target(url="http://a/").base_url == "http://a/v1" == Target(url="http://a/v1/").base_url
