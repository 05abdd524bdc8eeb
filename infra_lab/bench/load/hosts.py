"""The servers that the suite `server` compares, each for a process of its own: `python -m infra_lab.bench.load.hosts NAME`.

    ours     the server of this project, over the real engine with a model that takes no time
    paced    the same with a model that is just as fast as the server sends (see pacing.py)
    bare     Starlette, streaming the events that ours would send, one each turn of the loop, as tokens come: what the
             framework costs by itself
    blast    the same without turns: a stream goes out in one go, and the kernel joins its events
    raw      an asyncio protocol that writes those events one by one: what the client can take
    direct   no server: the time to the first delta of the same engine, as JSON

A server prints its port as the first line of its output.
"""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from itertools import islice
from pathlib import Path
from time import perf_counter

from infra_lab.bench.load.pacing import Handshake, PacedExecutor, SendCounter
from infra_lab.clock import WallClock
from infra_lab.data import data_path
from infra_lab.engine.async_engine import AsyncEngine
from infra_lab.engine.recorder import FlightRecorder
from infra_lab.models.tokenizer import load_tokenizer
from infra_lab.sampling_params import SamplingParams
from infra_lab.scheduler.config import SchedulerConfig
from infra_lab.server import ServedEngine, ServerConfig, create_app
from infra_lab.server.run import listen, run, run_app
from infra_lab.simulator.executor import simulated_engine

MODEL = "instant"
MAX_NUM_SEQS = 512
RECORDED_STEPS = 500
"""So that the recorder, which is bounded, is full when the memory of a young server is compared with that of an old one."""
CONFIG = ServerConfig(max_waiting=MAX_NUM_SEQS)
PARAMS = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)


def instant_engine() -> AsyncEngine:
    """Everything of an engine but the model: a step costs what scheduling and writing cost."""
    tokenizer = load_tokenizer(data_path("tiny"))
    limits = SchedulerConfig(max_model_len=2048, max_num_seqs=MAX_NUM_SEQS, max_batched_tokens=4096)
    core = simulated_engine(limits, tokenizer, vocab_size=tokenizer.vocab_size, num_kv_blocks=8192, clock=WallClock())
    core.recorder = FlightRecorder(RECORDED_STEPS)
    return AsyncEngine(core)


def serve_ours() -> None:
    """Serve as `infra-lab serve` does."""
    with listen("127.0.0.1", 0) as listener:
        _say(listener.getsockname()[1])
        run(ServedEngine(instant_engine(), (MODEL,)), CONFIG, listener)


def serve_paced() -> None:
    """Serve an engine that waits for the server."""
    engine, handshake = instant_engine(), Handshake()
    engine.core.executor = PacedExecutor(engine.core.executor, handshake)
    app = create_app(ServedEngine(engine, (MODEL,)), CONFIG)
    app.add_middleware(SendCounter, handshake=handshake)
    with listen("127.0.0.1", 0) as listener:
        _say(listener.getsockname()[1])
        run_app(app, CONFIG, listener)


def serve_bare(events: list[bytes], *, in_turns: bool) -> None:
    """Stream constants with Starlette on uvicorn."""
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import StreamingResponse
    from starlette.routing import Route

    async def constants() -> AsyncIterator[bytes]:
        for event in events:
            yield event
            if in_turns:
                await asyncio.sleep(0)

    async def answer(request: Request) -> StreamingResponse:
        await request.json()
        return StreamingResponse(constants(), media_type="text/event-stream")

    app = Starlette(routes=[Route("/v1/completions", answer, methods=["POST"])])
    with listen("127.0.0.1", 0) as listener:
        _say(listener.getsockname()[1])
        config = uvicorn.Config(app, http="h11", ws="none", access_log=False, log_config=None, backlog=1024)
        uvicorn.Server(config).run(sockets=[listener])


class RawSource(asyncio.Protocol):
    """Answers whatever comes with the events, a write each."""

    events: list[bytes]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """A request is small enough to come at once."""
        self._transport.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        for event in self.events:
            self._transport.write(b"%x\r\n%b\r\n" % (len(event), event))
        self._transport.write(b"0\r\n\r\n")


async def serve_raw(events: list[bytes]) -> None:
    """Serve `RawSource` until terminated."""
    RawSource.events = events
    server = await asyncio.get_running_loop().create_server(RawSource, "127.0.0.1", 0, backlog=1024)
    _say(server.sockets[0].getsockname()[1])
    await server.serve_forever()


async def time_direct(prompt: str, num_requests: int) -> list[float]:
    """Seconds to the first delta of each of so many requests, one after the other."""
    engine = instant_engine()
    times_s = []
    for _ in range(num_requests):
        begin_s = perf_counter()
        deltas = [perf_counter() - begin_s async for _ in engine.generate(prompt, PARAMS)]
        times_s.append(deltas[0])
    await engine.shutdown()
    return times_s


def _say(port: int) -> None:
    print(json.dumps({"port": port, "pid": os.getpid()}), flush=True)


def _events(path: str) -> list[bytes]:
    """The events of a captured stream."""
    return [event + b"\n\n" for event in Path(path).read_bytes().split(b"\n\n") if event]


def main(arguments: list[str]) -> None:
    """Run one of them."""
    match arguments:
        case ["ours"]:
            serve_ours()
        case ["paced"]:
            serve_paced()
        case ["bare" | "blast" as name, path]:
            serve_bare(_events(path), in_turns=name == "bare")
        case ["raw", path]:
            asyncio.run(serve_raw(_events(path)))
        case ["direct", prompt, number]:
            print(json.dumps(asyncio.run(time_direct(prompt, int(number)))))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(list(islice(sys.argv, 1, None)))
