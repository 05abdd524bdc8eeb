"""The dashboard against the real server on 127.0.0.1: what it shows is what the engine did, and nothing is left behind."""

import threading
import time
from collections.abc import Iterator

import httpx
import pytest

from infra_lab import LLM, SamplingParams
from infra_lab.course.local_server import LocalServer
from infra_lab.errors import ConfigError
from infra_lab.widgets.figures.serving import serving
from infra_lab.widgets.serving_dashboard import ServingDashboard
from infra_lab.widgets.serving_traffic import ServingSnapshot

PROMPTS = ["Return the ", "The module defines", "What is 🙂"]


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    with LocalServer("tiny", dtype="float32", num_kv_blocks=96, max_num_seqs=8) as running:
        yield running


def wait_until_idle(server: LocalServer) -> None:
    end_s = time.monotonic() + 20
    while server.engine.core.has_work and time.monotonic() < end_s:
        time.sleep(0.01)


def test_what_it_shows_is_what_the_engine_says(server: LocalServer) -> None:
    dashboard = ServingDashboard(server.url, PROMPTS, max_tokens=12)
    for rate in (
        12.0,
        3.0,
        1.0,
    ):  # the last four requests are kept: where the machine is busy, none of them may have ended
        snapshot = dashboard.run_for(2.0, rate=rate)
        if any(exchange.finish_reason == "length" for exchange in snapshot.streams):
            break
    assert snapshot.num_finished > 0
    assert snapshot.num_failed == 0
    assert len(snapshot.ttft_s) >= snapshot.num_finished
    assert snapshot.gauges
    finished = [exchange for exchange in snapshot.streams if exchange.finish_reason == "length"]
    assert finished
    llm = LLM("tiny", dtype="float32", num_kv_blocks=96)
    for exchange in finished:
        params = SamplingParams(max_tokens=12, seed=exchange.number, ignore_eos=True)
        assert llm.generate([exchange.prompt], params)[0].text == exchange.text


def test_after_stop_nothing_runs_and_all_blocks_are_free(server: LocalServer) -> None:
    dashboard = ServingDashboard(server.url, PROMPTS, max_tokens=200)
    snapshot = dashboard.run_for(1.0, rate=30.0)
    assert snapshot.num_sent > snapshot.num_finished  # some were dropped in the middle
    wait_until_idle(server)
    blocks = server.engine.core.scheduler.blocks
    assert blocks.num_free_blocks == blocks.num_blocks
    names = {thread.name for thread in threading.enumerate()}
    assert not names & {"infra-lab-traffic", "infra-lab-dashboard"}


def test_larger_events_are_fewer(server: LocalServer) -> None:
    per_request = {}
    for chunk_tokens in (1, 16):
        dashboard = ServingDashboard(server.url, PROMPTS, max_tokens=32)
        snapshot = dashboard.run_for(2.0, rate=6.0, chunk_tokens=chunk_tokens)
        per_request[chunk_tokens] = len(snapshot.itl_s) / len(snapshot.ttft_s)
    assert per_request[16] <= 2.0 < per_request[1]  # 32 tokens: an event each, or two pieces


def test_a_server_that_is_away_is_a_failure_not_an_exception() -> None:
    dashboard = ServingDashboard("http://127.0.0.1:9", PROMPTS)
    snapshot = dashboard.run_for(1.0, rate=20.0)
    assert snapshot.num_sent == snapshot.num_failed > 0
    assert "dropped or failed" in dashboard.summary
    assert not snapshot.gauges


def test_the_histograms_hold_every_sample() -> None:
    snapshot = ServingSnapshot(4.0, ttft_s=(0.001, 0.02, 300.0), itl_s=(0.0, 1e-6, 0.003, 0.003))
    first, between, *_ = serving(snapshot).data
    assert sum(first.y) == 3
    assert sum(between.y) == 4
    assert max(between.y) == 2


def test_sliders_and_buttons(server: LocalServer) -> None:
    dashboard = ServingDashboard(server.url, PROMPTS, rate=3.0)
    dashboard.controls["rate"].value = 9.0
    assert dashboard.traffic.rate == 9.0
    with pytest.raises(ConfigError, match="rate, max_tokens, chunk_tokens"):
        dashboard.set(speed=3)
    with pytest.raises(ConfigError, match="chunk_tokens"):
        dashboard.set(rate=1.0, chunk_tokens=3)
    assert dashboard.traffic.rate == 9.0  # nothing was changed
    dashboard.start_button.click()
    assert dashboard.traffic.is_running
    dashboard.stop_button.click()
    assert not dashboard.traffic.is_running
    assert {"image/png", "text/plain"} <= set(dashboard._repr_mimebundle_())


def test_no_load_sends_nothing(server: LocalServer) -> None:
    assert ServingDashboard(server.url, PROMPTS).run_for(0.5, rate=0.0).num_sent == 0


def test_it_needs_a_prompt() -> None:
    with pytest.raises(ConfigError, match="at least one"):
        ServingDashboard("http://127.0.0.1:9", [])


def test_a_second_server_closes_the_first(server: LocalServer) -> None:
    # Last in this file: the module's server is closed by it.
    with LocalServer("tiny", dtype="float32", num_kv_blocks=8) as second:
        assert not server.is_running
        assert httpx.get(f"{second.url}/health").status_code == 200
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{server.url}/health")
    assert not second.is_running
    second.close()
