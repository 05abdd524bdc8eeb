"""Clients that send slowly, read slowly or wait long: each has its limit, and nobody waits for them."""

import json
import time
from contextlib import closing

import httpx
import openai
import pytest

from infra_lab.server import ServerConfig
from tests.server.live import SENTENCE, WAIT_S, connect, read_all, request_of, serving, simulated, until, works

LONG = {"prompt": "x", "max_tokens": 3000, "stream": True}


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nX-A: "])
def test_a_slow_loris_is_closed(sent: bytes) -> None:
    with serving(simulated(), head_timeout_s=0.3) as live, closing(connect(live)) as connection:
        connection.sendall(sent)
        assert read_all(connection).startswith(b"HTTP/1.1 408")
        works(live)


def test_a_slow_loris_on_a_connection_that_was_good_before() -> None:
    with serving(simulated(), head_timeout_s=0.3) as live, closing(connect(live)) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        connection.sendall(b"GET /hea")
        assert b"HTTP/1.1 408" in read_all(connection)


def test_a_body_that_trickles_gets_408() -> None:
    with serving(simulated(), body_timeout_s=0.3) as live, closing(connect(live)) as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        answer = read_all(connection)
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"body_timeout" in answer


REFUSED_AT_ITS_HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: other.example\r\nContent-Length: 3\r\n\r\n{"


def test_a_body_that_trickles_after_its_answer() -> None:
    """Who was refused at once, for a wrong key or host, could hold the connection for ever by sending the rest slowly."""
    with serving(simulated(), body_timeout_s=0.3, allowed_hosts=("127.0.0.1",)) as live, closing(connect(live)) as slow:
        slow.sendall(REFUSED_AT_ITS_HEAD)
        assert read_all(slow).startswith(b"HTTP/1.1 403")


def test_a_body_that_comes_after_its_answer_leaves_the_connection_good() -> None:
    engine = simulated(step_s=0.01)
    with serving(engine, body_timeout_s=0.3, allowed_hosts=("x",)) as live, closing(connect(live)) as late:
        late.sendall(REFUSED_AT_ITS_HEAD)
        assert late.recv(4096).startswith(b"HTTP/1.1 403")
        late.sendall(b" }" + request_of("/v1/completions", {**LONG, "max_tokens": 60}, close=True))
        assert read_all(late).endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"), "twice as long as a body may take"


def test_a_slow_reader_is_cut_off_and_slows_nobody() -> None:
    engine = simulated(step_s=0.0, num_kv_blocks=20_000, max_model_len=200_000)
    with serving(engine, max_buffered_bytes=20_000) as live, closing(connect(live)) as lazy:
        lazy.sendall(request_of("/v1/completions", {**LONG, "max_tokens": 150_000}, close=True))
        works(live)
        until(lambda: not engine.core.has_work, "its buffer is full and its work is given up")
        works(live)
        received = read_all(lazy)  # it reads after all: what was made before, and why there is no more
        assert b'"code": "slow_reader"' in received
        assert received.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


def test_a_reader_that_stops_is_disconnected() -> None:
    engine = simulated(step_s=0.0, num_kv_blocks=20_000, max_model_len=200_000)
    with serving(engine, stalled_reader_s=0.3, max_buffered_bytes=1 << 30) as live, closing(connect(live)) as lazy:
        lazy.sendall(request_of("/v1/completions", {**LONG, "max_tokens": 150_000}, close=True))
        until(lambda: bool(live.runtime.running), "it has begun")
        until(lambda: not live.runtime.running, "it was aborted")
        assert len(engine.recorder.steps) < 100_000, "long before it would have been done"
        received = read_all(lazy)
        assert received.startswith(b"HTTP/1.1 200")
        assert not received.endswith(b"0\r\n\r\n"), "the response was not completed"


def test_heartbeats_while_a_request_waits() -> None:
    with serving(simulated(step_s=0.01, max_num_seqs=1), heartbeat_s=0.05) as live:
        with httpx.stream("POST", f"{live.url}/v1/completions", json={**LONG, "max_tokens": 100}) as first:
            lines = first.iter_lines()
            next(lines)
            waiting = httpx.post(f"{live.url}/v1/completions", json={**LONG, "max_tokens": 3}, timeout=WAIT_S)
        body = waiting.text
        assert body.startswith(": ping\n\n")
        assert body.count(": ping") > 2
        assert body.index(": ping") < body.index("data:")
        text = "".join(json.loads(line[6:])["choices"][0]["text"] for line in body.split("\n") if line[:7] == "data: {")
        assert text == SENTENCE[:3]


def test_a_heartbeat_comes_before_a_client_gives_up() -> None:
    """Clients that are left as they are wait five seconds for a byte; a stream that waited its turn for ten lost them."""
    with httpx.Client() as client:
        assert ServerConfig().heartbeat_s < (client.timeout.read or 0.0)


def test_time_limits_end_a_request_wherever_it_is() -> None:
    with serving(simulated(step_s=0.02), request_timeout_s=5.0) as live:
        with pytest.raises(openai.APIStatusError) as raised:
            live.openai().completions.create(model="sim", prompt="x", max_tokens=3000, extra_body={"timeout": 0.2})
        assert raised.value.status_code == 408
        headers = {"X-Request-Timeout": "0.2"}
        started_s = time.monotonic()
        streamed = httpx.post(f"{live.url}/v1/completions", json=LONG, headers=headers, timeout=WAIT_S)
        assert time.monotonic() - started_s < 5.0, "the client's limit counts, not the server's longer one"
        assert streamed.status_code == 200
        assert '"code": "timeout"' in streamed.text
        bad = httpx.post(f"{live.url}/v1/completions", json=LONG, headers={"X-Request-Timeout": "soon"})
        assert bad.status_code == 400


@pytest.mark.parametrize("stream", [False, True])
def test_what_ran_out_of_time_is_not_tried_again(stream: bool) -> None:
    """OpenAI's client repeats a 408 by itself: a job that was too long ran three times."""
    with serving(simulated(step_s=0.01, max_num_seqs=1)) as live:
        blocker = live.openai().completions.create(model="sim", prompt="x", max_tokens=3000, stream=True)
        next(iter(blocker))
        client = live.openai(max_retries=2)
        with pytest.raises(openai.APIStatusError) as raised:  # it waits behind the other one, so no token has been sent
            client.completions.create(model="sim", prompt="y", stream=stream, extra_body={"timeout": 0.1})
        blocker.close()
        assert (raised.value.status_code, raised.value.code) == (408, "timeout")
        counter = 'http_requests_total{method="POST",route="/v1/completions",status="408"}'

        def num_arrived() -> float:
            lines = httpx.get(f"{live.url}/metrics").text.splitlines()
            return sum(float(line.removeprefix(counter)) for line in lines if line.startswith(counter))

        until(lambda: num_arrived() > 0, "it is counted")
        assert num_arrived() == 1
