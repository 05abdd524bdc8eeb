"""What operators see: health, readiness, metrics, and a line a request."""

import json
import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from infra_lab.scheduler.plan import StepPlan, StepResult
from infra_lab.server.request_log import JsonLines, access_logger
from tests.server.live import WAIT_S, Live, serving, simulated, until

VLLM = [
    "num_requests_running",
    "num_requests_waiting",
    "kv_cache_usage_perc",
    "gpu_cache_usage_perc",
    "prefix_cache_queries_total",
    "prefix_cache_hits_total",
    "num_preemptions_total",
    "prompt_tokens_total",
    "generation_tokens_total",
    "time_to_first_token_seconds_count",
    "inter_token_latency_seconds_count",
    "time_per_output_token_seconds_count",
    "e2e_request_latency_seconds_count",
]


def samples(live: Live) -> dict[str, float]:
    """Every sample by name, and by name and label value where there is more than one label."""
    found = {}
    for family in text_string_to_metric_families(httpx.get(f"{live.url}/metrics").text):
        for sample in family.samples:
            labels = [value for name, value in sorted(sample.labels.items()) if name != "model_name"]
            found[" ".join([sample.name, *labels])] = sample.value
    return found


def test_metrics_count_what_happened() -> None:
    with serving(simulated()) as live:
        before = samples(live)
        assert set(VLLM) <= {name.removeprefix("vllm:") for name in before}
        prompt = "x" * 40
        for _ in range(2):
            live.post("/v1/completions", prompt=prompt, max_tokens=10)
        live.post("/v1/completions", prompt=prompt, max_tokens=60, stop="fox", n=2, stream=True)
        live.post("/v1/completions", prompt=prompt, temperature=-1)
        until(lambda: not live.runtime.running, "all are accounted for")
        after = samples(live)
        gained = {name: value - before.get(name, 0.0) for name, value in after.items()}
        assert gained["vllm:request_success_total length"] == 2
        assert gained["vllm:request_success_total stop"] == 2
        assert gained["vllm:prompt_tokens_total"] == 3 * 40
        assert gained["vllm:generation_tokens_total"] == 10 + 10 + 19 + 15, "up to and with the last letter of fox"
        assert gained["vllm:time_to_first_token_seconds_count"] == 4
        assert gained["vllm:e2e_request_latency_seconds_count"] == 4
        assert gained["vllm:prefix_cache_hits_total"] == 2 * 32, "two of three found two blocks"
        assert gained["http_requests_total POST /v1/completions 200"] == 3
        assert gained["http_requests_total POST /v1/completions 400"] == 1
        assert after["http_requests_in_flight"] == 1, "the scrape itself"
        assert after["vllm:num_requests_running"] == 0


def test_what_the_engine_refused_has_not_ended() -> None:
    """It was counted as an abort: a client with a wrong field looked like one that leaves."""
    with serving(simulated(step_s=0.01)) as live:
        assert live.post("/v1/completions", prompt=["x", "y"], logit_bias={"99999": 1}, n=2).status_code == 400
        assert live.post("/v1/completions", prompt="x", max_tokens=500, timeout=0.05).status_code == 408
        until(lambda: not live.runtime.running, "both are accounted for")
        endings = {
            name: count for name, count in samples(live).items() if name.startswith("vllm:request_success_total")
        }
        assert {name.split()[1]: count for name, count in endings.items() if count} == {"abort": 1}


def test_gauges_show_who_runs_who_waits_and_what_it_takes() -> None:
    with serving(simulated(step_s=0.01, max_num_seqs=2)) as live:
        body = {"prompt": "x" * 20, "max_tokens": 100}
        threads = [threading.Thread(target=live.post, args=("/v1/completions",), kwargs=body) for _ in range(5)]
        for thread in threads:
            thread.start()
        until(lambda: samples(live)["vllm:num_requests_waiting"] == 3, "three wait")
        now = samples(live)
        assert now["vllm:num_requests_running"] == 2
        assert 0 < now["vllm:kv_cache_usage_perc"] == now["vllm:gpu_cache_usage_perc"] < 0.1
        for thread in threads:
            thread.join(WAIT_S)


def test_preemptions_are_counted() -> None:
    with serving(simulated(num_kv_blocks=9, max_model_len=100)) as live:
        live.post("/v1/completions", prompt=["x" * 30, "y" * 30], max_tokens=60)
        assert samples(live)["vllm:num_preemptions_total"] == sum(
            len(step.preempted) for step in live.engine.recorder.steps
        )
        assert samples(live)["vllm:num_preemptions_total"] > 0


def test_load_balancers_may_ask_for_the_head_only() -> None:
    with serving(simulated()) as live:
        for path in ("/health", "/ready"):
            response = httpx.head(live.url + path)
            assert (response.status_code, response.content) == (200, b"")


def test_health_notices_an_engine_that_is_stuck() -> None:
    engine, stuck = simulated(), threading.Event()
    execute = engine.core.executor.execute

    def waiting(plan: StepPlan) -> StepResult:
        stuck.wait(WAIT_S)
        return execute(plan)

    engine.core.executor.execute = waiting  # type: ignore[method-assign]
    with serving(engine, stall_s=0.2) as live:
        time.sleep(0.3)
        assert httpx.get(f"{live.url}/health").status_code == 200, "idle for long is not stuck"
        thread = threading.Thread(target=live.post, args=("/v1/completions",), kwargs={"prompt": "x", "max_tokens": 2})
        thread.start()
        until(lambda: httpx.get(f"{live.url}/health").status_code == 503, "it is stuck")
        assert httpx.get(f"{live.url}/ready").json()["reason"]
        assert httpx.get(f"{live.url}/v2/health/live").status_code == 503
        stuck.set()
        thread.join(WAIT_S)
        assert httpx.get(f"{live.url}/health").status_code == 200


@pytest.fixture
def lines() -> Iterator[list[dict[str, Any]]]:
    """The request log of the test, as JSON."""
    found: list[dict[str, Any]] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(json.loads(JsonLines().format(record)))

    handler, level = Keep(), access_logger.level
    access_logger.addHandler(handler)
    access_logger.setLevel(logging.INFO)
    yield found
    access_logger.removeHandler(handler)
    access_logger.setLevel(level)


def test_a_line_a_request_without_anybodys_text(lines: list[dict[str, Any]]) -> None:
    with serving(simulated()) as live:
        headers = {"X-Request-Id": "mine"}
        body = {"prompt": "my secret", "max_tokens": 5, "n": 2}
        httpx.post(f"{live.url}/v1/completions", json=body, headers=headers)
        live.post("/v1/completions", prompt="my secret", top_p=7)
        httpx.get(f"{live.url}/nowhere/42")
        until(lambda: len(lines) == 3, "three lines")
    served, refused, unmatched = lines
    assert served | {"duration_s": 0, "ttft_s": 0, "time": ""} == {
        "time": "",
        "level": "info",
        "event": "request",
        "request_id": "mine",
        "method": "POST",
        "route": "/v1/completions",
        "status": 200,
        "duration_s": 0,
        "key": None,
        "stream": False,
        "prompt_tokens": 9,
        "cached_tokens": 0,
        "output_tokens": 10,
        "ttft_s": 0,
        "finish_reasons": ["length", "length"],
    }
    assert (refused["status"], unmatched["status"], unmatched["route"]) == (400, 404, "unmatched")
    assert "secret" not in json.dumps(lines)


def test_prompts_are_logged_when_told_to_and_endings_are_named(lines: list[dict[str, Any]]) -> None:
    with serving(simulated(step_s=0.02), log_prompts=True) as live:
        live.post("/v1/completions", prompt="hello", max_tokens=3000, timeout=0.1, stream=True)
        until(lambda: len(lines) == 1, "a line")
    assert lines[0]["prompt"] == "hello"
    assert (lines[0]["status"], lines[0]["error"], lines[0]["finish_reasons"]) == (408, "timeout", [None])


def test_exceptions_are_one_line_too() -> None:
    record = logging.makeLogRecord({"name": "infra_lab.x", "msg": "a\nb", "levelname": "ERROR", "exc_info": None})
    assert json.loads(JsonLines().format(record))["message"] == "a\nb"
    assert "\n" not in JsonLines().format(record)
