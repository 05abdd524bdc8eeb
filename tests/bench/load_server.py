"""A small real server for the load generator's tests: what it does, a request says in its field "behaviour"."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from infra_lab.server.run import listen

WAIT_S = 20.0
TOKENS_PER_WORD, OVERHEAD = 2, 3


@dataclass
class Scripted:
    """The server's side of a test."""

    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    """Of the streaming requests."""
    headers: list[dict[str, str]] = field(default_factory=list)
    open_now: int = 0
    max_open: int = 0
    gate_size: int = 1
    """"gate" answers nobody before so many requests are in."""

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": "scripted"}]})

    async def generate(self, request: Request) -> Response:
        body = await request.json()
        text = body["prompt"] if "prompt" in body else body["messages"][0]["content"]
        num_prompt = TOKENS_PER_WORD * len(text.split()) + OVERHEAD
        usage = {"prompt_tokens": num_prompt, "completion_tokens": body["max_tokens"]}
        if not body.get("stream"):
            return JSONResponse({"choices": [], "usage": usage})
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        match body.get("behaviour", "good"):
            case "busy":
                return JSONResponse({"error": {"message": "come back later"}}, status_code=429)
            case behaviour:
                stream = self.stream(body, usage, behaviour, is_chat="messages" in body)
                return StreamingResponse(stream, media_type="text/event-stream")

    async def stream(
        self, body: dict[str, Any], usage: dict[str, Any], behaviour: str, *, is_chat: bool
    ) -> AsyncIterator[bytes]:
        self.open_now += 1
        self.max_open = max(self.max_open, self.open_now)
        try:
            while behaviour == "gate" and len(self.bodies) < self.gate_size:
                await asyncio.sleep(0.005)
            if behaviour == "stall":
                await asyncio.sleep(WAIT_S)
            yield b": ping\r\n\r\n"
            if is_chat:
                yield event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
            for number in range(body["max_tokens"]):
                if behaviour == "breaks" and number == 2:
                    return
                if behaviour == "error" and number == 2:
                    yield event({"error": {"message": "out of memory"}})
                    return
                if behaviour == "garbage" and number == 2:
                    yield b"data: {oh\n\n"
                piece = {"delta": {"content": "x "}} if is_chat else {"text": "é"}
                yield event({"choices": [{"index": 0, **piece, "finish_reason": None}]})
                await asyncio.sleep(0)
            end = {"delta": {}} if is_chat else {"text": ""}
            yield event({"choices": [{"index": 0, **end, "finish_reason": "length"}]})
            if behaviour != "no usage":
                yield event({"choices": [], "usage": usage})
            yield b"data: [DONE]\n\n"
        finally:
            self.open_now -= 1


def event(content: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"


@contextmanager
def scripted_server() -> Iterator[Scripted]:
    """Serve on a free port of 127.0.0.1, on a thread."""
    scripted = Scripted()
    routes = [
        Route("/v1/models", scripted.models),
        Route("/v1/completions", scripted.generate, methods=["POST"]),
        Route("/v1/chat/completions", scripted.generate, methods=["POST"]),
    ]
    server = uvicorn.Server(uvicorn.Config(Starlette(routes=routes), log_level="critical", lifespan="off"))
    listener = listen("127.0.0.1", 0)
    scripted.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    end_s = time.monotonic() + WAIT_S
    while not server.started and time.monotonic() < end_s:
        time.sleep(0.005)
    try:
        yield scripted
    finally:
        server.should_exit = server.force_exit = True
        thread.join(WAIT_S)
