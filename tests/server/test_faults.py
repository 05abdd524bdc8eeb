"""Clients that die, flood and talk nonsense, and an engine that fails; none of them may harm another request."""

import asyncio
import json
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import httpx
import openai
import pytest

from infra_lab.scheduler.plan import StepPlan, StepResult
from tests.server.live import SENTENCE, WAIT_S, Live, connect, read_all, request_of, serving, simulated, until, works

LONG = {"prompt": "x", "max_tokens": 3000, "stream": True}
KILLED_CLIENT = """
import httpx, sys
with httpx.stream("POST", sys.argv[1], json={"prompt": "x", "max_tokens": 3000, "stream": True}, timeout=60) as response:
    for line in response.iter_lines():
        print(line, flush=True)
"""


def test_a_client_killed_in_mid_stream_frees_its_blocks(sim: Live) -> None:
    client = subprocess.Popen(
        [sys.executable, "-c", KILLED_CLIENT, f"{sim.url}/v1/completions"], stdout=subprocess.PIPE
    )
    with client:
        assert client.stdout is not None
        assert client.stdout.readline().startswith(b"data: ")
        blocks = sim.engine.core.scheduler.blocks
        assert blocks.num_free_blocks < blocks.num_blocks
        client.send_signal(signal.SIGKILL)
    until(sim.is_idle, "the killed client's blocks are free")
    [last] = sim.engine.recorder.steps[-1:]
    assert last.num_running <= 1
    works(sim)


def test_blocks_are_free_one_step_after_the_server_saw_the_disconnect() -> None:
    with serving(simulated(step_s=0.05)) as live:
        connection = connect(live)
        connection.sendall(request_of("/v1/completions", LONG))
        connection.recv(1000)
        connection.close()
        until(lambda: not live.runtime.running, "the server has seen it")
        steps = len(live.engine.recorder.steps)
        until(lambda: not live.engine.core.has_work, "the engine has dropped it")
        assert len(live.engine.recorder.steps) - steps <= 1, "no more than the step that ran meanwhile"


def test_a_hundred_disconnects_in_a_second(sim: Live) -> None:
    async def one(index: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", sim.port)
        body = {**LONG, "stream": index % 3 > 0, "n": 1 + index % 2}
        writer.write(request_of("/v1/completions", body))
        await writer.drain()
        if index % 3 == 1:
            await reader.readline()
        await asyncio.sleep(0.01 * (index % 20))
        writer.transport.abort()

    async def main() -> None:
        await asyncio.gather(*(one(index) for index in range(100)))

    asyncio.run(main())
    until(sim.is_idle, "all hundred are gone")
    works(sim)


def test_a_client_that_leaves_before_the_engine_has_looked_at_its_request() -> None:
    """Cancelling a request in the engine's inbox once ended the engine's thread, and with it the service."""
    engine, may_go_on, is_stuck = simulated(), threading.Event(), threading.Event()
    execute = engine.core.executor.execute

    def waiting(plan: StepPlan) -> StepResult:
        is_stuck.set()
        may_go_on.wait(WAIT_S)
        return execute(plan)

    engine.core.executor.execute = waiting  # type: ignore[method-assign]
    with serving(engine) as live:
        with closing(connect(live)) as first, closing(connect(live)) as refused, closing(connect(live)) as accepted:
            first.sendall(request_of("/v1/completions", {"prompt": "x", "max_tokens": 2}))
            assert is_stuck.wait(WAIT_S)
            refused.sendall(request_of("/v1/completions", {"prompt": "x", "logit_bias": {"999999": 1}}))
            accepted.sendall(request_of("/v1/completions", LONG))
            until(lambda: len(live.runtime.running) == 3, "two wait in the inbox while a step is computed")
        until(lambda: not live.runtime.running, "all three have left")
        may_go_on.set()
        works(live)


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b'{"prompt": "x"', "application/json"),
        (b'{"prompt": "\xff\xfe"}', "application/json"),
        (b'{"prompt": "\\ud800"}', "application/json"),
        (b"[" * 100_000, "application/json"),
        (b'{"prompt": "x", "temperature": NaN}', "application/json"),
        (b'{"prompt": "x", "max_tokens": 1e400}', "application/json"),
        (b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}", "application/json"),
        (b'{"prompt": "x"}', "text/plain"),
        (b"", "application/json"),
        (b"null", "application/json"),
        (b'"x"', "application/json"),
        (b"\x00\x01\x02", "application/octet-stream"),
    ],
)
def test_malformed_bodies_get_400(sim: Live, body: bytes, content_type: str) -> None:
    response = httpx.post(f"{sim.url}/v1/completions", content=body, headers={"Content-Type": content_type})
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["message"]


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_body_of_ten_megabytes_gets_413(sim: Live, framing: str) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(160):
            yield b"x" * 65536

    content: Any = chunks() if framing == "chunked" else b"x" * (160 * 65536)
    headers = {"Content-Type": "application/json"}
    response = httpx.post(f"{sim.url}/v1/completions", content=content, headers=headers, timeout=WAIT_S)
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "body_too_large"
    works(sim)


def test_who_asks_before_sending_too_much_is_told_at_once(sim: Live) -> None:
    with closing(connect(sim)) as connection:
        head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 10000000\r\n\r\n"
        connection.sendall(head.encode())
        assert read_all(connection).startswith(b"HTTP/1.1 413")


def test_a_flood_of_headers_is_cut_off(sim: Live) -> None:
    with closing(connect(sim)) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n")
        answer = b""
        try:
            for index in range(20_000):
                connection.sendall(f"X-Header-{index}: {'y' * 100}\r\n".encode())
            answer = read_all(connection)
        except (BrokenPipeError, ConnectionResetError):
            pass  # closed while we were still sending
        assert answer == b"" or answer.startswith(b"HTTP/1.1 400")
    works(sim)


def test_an_exception_of_the_engine_ends_its_step_only() -> None:
    engine = simulated()
    execute = engine.core.executor.execute

    def failing(plan: StepPlan) -> StepResult:
        if any(66 in chunk.request.token_ids[: chunk.request.num_prompt_tokens] for chunk in plan.chunks):
            raise RuntimeError("planted")
        return execute(plan)

    engine.core.executor.execute = failing  # type: ignore[method-assign]
    with serving(engine) as live:
        with pytest.raises(openai.InternalServerError, match="planted"):
            live.openai().completions.create(model="sim", prompt="B", max_tokens=5)
        with pytest.raises(openai.InternalServerError, match="planted"):
            live.openai().completions.create(model="sim", prompt="B", max_tokens=5, stream=True)
        works(live)


def test_an_error_of_one_request_leaves_its_neighbours_alone() -> None:
    engine = simulated()
    execute = engine.core.executor.execute

    def failing(plan: StepPlan) -> StepResult:
        result = execute(plan)
        for position, chunk in enumerate(plan.chunks):
            if chunk.request.token_ids[0] == 66 and chunk.request.num_output_tokens == 5:
                result.errors[position] = "logits are not finite"
                result.token_ids[position] = -1
        return result

    engine.core.executor.execute = failing  # type: ignore[method-assign]
    with serving(engine) as live:
        texts: list[str] = []

        def neighbour() -> None:
            chunks = live.openai().completions.create(model="sim", prompt="x", max_tokens=200, stream=True)
            texts.append("".join(chunk.choices[0].text for chunk in chunks))

        thread = threading.Thread(target=neighbour)
        thread.start()
        received: list[str] = []
        chunks = live.openai().completions.create(model="sim", prompt="B", max_tokens=50, stream=True)
        with pytest.raises(openai.APIError, match="not finite"):
            received.extend(chunk.choices[0].text for chunk in chunks)
        thread.join(WAIT_S)
        assert "".join(received) == SENTENCE[:5], "what was generated before the error arrives"
        assert texts == [(SENTENCE * 5)[:200]]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_reads_a_stream(sim: Live) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5, "stream": True})
    command = ["curl", "-sN", f"{sim.url}/v1/chat/completions", "-H", "Content-Type: application/json", "-d", body]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=True).stdout
    assert shown.endswith("data: [DONE]\n\n")
    assert shown.count("data: {") == 7


def test_pipelined_requests_are_answered_in_order(sim: Live) -> None:
    with closing(connect(sim)) as connection:
        once = request_of("/v1/completions", {"prompt": "x", "max_tokens": 3})
        connection.sendall(once + once + b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = read_all(connection)
        assert answer.count(b"HTTP/1.1 200") == 3
        assert answer.count(b'"text":"the"') == 2
