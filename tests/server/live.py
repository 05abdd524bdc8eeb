"""A real server on a real socket: uvicorn on a thread, over the real scheduler with a simulated or the real executor."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import httpx
from openai import OpenAI

from infra_lab.clock import WallClock
from infra_lab.engine.async_engine import AsyncEngine
from infra_lab.models.fetch import resolve_model
from infra_lab.models.hf_tokenizer import read_hf_tokenizer
from infra_lab.models.tokenizer import Tokenizer
from infra_lab.scheduler.config import SchedulerConfig
from infra_lab.server import ServedEngine, ServerConfig, create_app
from infra_lab.server.run import listen, server_of
from infra_lab.server.runtime import Runtime
from infra_lab.simulator.cost import LinearStepCost
from infra_lab.simulator.executor import NextToken, cycling_text, simulated_engine

SENTENCE = "the quick brown fox jumps over the lazy dog. "
"""What the simulated model writes, over and over."""
STEP_S = 0.002
"""A simulated step takes this long on the wall clock."""
WAIT_S = 20.0
"""How long a test waits for something that happens at once on an idle machine."""


@dataclass(frozen=True)
class Live:
    """A server that runs."""

    url: str
    engine: AsyncEngine
    runtime: Runtime

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def openai(self, **settings: Any) -> OpenAI:
        return OpenAI(**{"base_url": f"{self.url}/v1", "api_key": "unused-key", "max_retries": 0, **settings})

    def post(self, path: str, **body: Any) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=WAIT_S)

    def is_idle(self) -> bool:
        blocks = self.engine.core.scheduler.blocks
        return (
            not self.engine.core.has_work
            and blocks.num_free_blocks == blocks.num_blocks
            and not self.runtime.running
            and self.runtime.admission.in_flight == 0
        )


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait, a bounded time, for what must come."""
    end_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end_s, f"still not after {WAIT_S} s: {what}"
        time.sleep(0.005)


def tiny_tokenizer(chat_template: str | None = None) -> Tokenizer:
    parts = read_hf_tokenizer(resolve_model("tiny"))
    return Tokenizer(replace(parts, chat_templates={"default": chat_template}) if chat_template else parts)


def simulated(
    *,
    step_s: float = STEP_S,
    next_token: NextToken = cycling_text,
    tokenizer: Tokenizer | None = None,
    max_num_seqs: int = 64,
    num_kv_blocks: int = 4096,
    max_model_len: int = 4096,
) -> AsyncEngine:
    """An engine whose model is a rule; all else is real."""
    limits = SchedulerConfig(max_model_len=max_model_len, max_num_seqs=max_num_seqs, max_batched_tokens=2048)
    core = simulated_engine(
        limits,
        tokenizer or tiny_tokenizer(),
        vocab_size=272,
        num_kv_blocks=num_kv_blocks,
        cost=LinearStepCost(fixed_s=step_s),
        clock=WallClock(),
        next_token=next_token,
    )
    return AsyncEngine(core)


def writing(text: str) -> NextToken:
    """A rule that writes a text, byte by byte, and then the end of sequence."""
    raw = text.encode()
    return lambda request: raw[request.num_output_tokens] if request.num_output_tokens < len(raw) else 259


@contextmanager
def serving(engine: AsyncEngine, **config: Any) -> Iterator[Live]:
    """Serve an engine on a free port; at the end everything must have come home."""
    settings = ServerConfig(**config)
    app = create_app(ServedEngine(engine, ("sim", "sim-alias")), settings)
    server = server_of(app, settings)
    listener = listen("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    live = Live(url, engine, app.state.runtime)
    try:
        until(lambda: server.started, "the server listens")
        yield live
        until(live.is_idle, "all blocks are free and nothing runs")
    finally:
        server.should_exit = True
        thread.join(WAIT_S)
        asyncio.run(asyncio.wait_for(engine.shutdown(drain=False), WAIT_S))


def request_of(path: str, body: dict[str, Any], *, close: bool = False) -> bytes:
    raw = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(raw)}\r\n"
    return head.encode() + (b"Connection: close\r\n\r\n" if close else b"\r\n") + raw


def connect(live: Live) -> socket.socket:
    return socket.create_connection(("127.0.0.1", live.port), timeout=WAIT_S)


def read_all(connection: socket.socket) -> bytes:
    received = b""
    while part := connection.recv(65536):
        received += part
    return received


def works(live: Live) -> None:
    answer = live.openai(timeout=WAIT_S).completions.create(model="sim", prompt="x", max_tokens=20)
    assert answer.choices[0].text == SENTENCE[:20]
