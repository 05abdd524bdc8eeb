"""Open-loop traffic on an OpenAI-compatible server, and what it feels like there: TTFT, gaps between events, queue, KV.

Requests come as a Poisson process whose rate may change at any moment; a slow server does not slow them down. Only the
server's own endpoints are used, so it may be any server: /v1/completions with streaming, and /metrics under vLLM's names.
"""

import asyncio
import json
import random
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import httpx
from prometheus_client.parser import text_string_to_metric_families

WINDOW_S = 15.0
"""Latencies older than this are forgotten, so that the picture follows the slider."""
_POLL_S, _LONGEST_NAP_S = 0.2, 0.05
_GAUGES = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")


class Gauges(NamedTuple):
    """What /metrics said at one moment."""

    time_s: float
    running: float
    waiting: float
    kv_usage: float
    """Share of the KV blocks, 0 to 1."""


@dataclass(slots=True)
class Exchange:
    """One request and what came back of it. Times are of the monotonic clock."""

    number: int
    prompt: str
    sent_s: float
    text: str = ""
    first_s: float | None = None
    last_s: float | None = None
    finish_reason: str | None = None
    """"error" where the server refused or failed."""


@dataclass(frozen=True, slots=True)
class ServingSnapshot:
    """The traffic up to now; latencies of the last WINDOW_S."""

    rate: float
    num_sent: int = 0
    num_finished: int = 0
    num_failed: int = 0
    ttft_s: tuple[float, ...] = ()
    itl_s: tuple[float, ...] = ()
    """Between two events of a stream: with several tokens an event, longer than between two tokens."""
    gauges: tuple[Gauges, ...] = ()
    streams: tuple[Exchange, ...] = ()
    """The latest requests, newest first."""


@dataclass(slots=True)
class Traffic:
    """Sends completions to `url` between `start` and `stop`. `rate`, `max_tokens` and `chunk_tokens` may be set meanwhile."""

    url: str
    model: str
    prompts: Sequence[str]
    rate: float = 4.0
    """Requests a second."""
    max_tokens: int = 48
    chunk_tokens: int = 1
    seed: int = 0
    max_open: int = 128
    """Requests beyond this many open ones fail at once, instead of filling the client's memory."""
    _latencies: deque[tuple[float, float, bool]] = field(default_factory=lambda: deque(maxlen=20_000))
    """(when, seconds, whether it is a TTFT)."""
    _gauges: deque[Gauges] = field(default_factory=lambda: deque(maxlen=300))
    _streams: deque[Exchange] = field(default_factory=lambda: deque(maxlen=4))
    _counts: dict[str, int] = field(default_factory=lambda: {"sent": 0, "finished": 0, "failed": 0})
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stopping: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    @property
    def is_running(self) -> bool:
        """Whether requests are being sent."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Begin to send, on a thread; nothing happens if it has begun."""
        if not self.is_running:
            self._stopping.clear()
            self._thread = threading.Thread(
                target=lambda: asyncio.run(self._run()), name="infra-lab-traffic", daemon=True
            )
            self._thread.start()

    def stop(self) -> None:
        """Send no more and drop what is open: the server frees its blocks."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    def snapshot(self) -> ServingSnapshot:
        """What has been seen."""
        with self._lock:
            recent = [entry for entry in self._latencies if entry[0] >= time.monotonic() - WINDOW_S]
            return ServingSnapshot(
                self.rate,
                self._counts["sent"],
                self._counts["finished"],
                self._counts["failed"],
                ttft_s=tuple(seconds for _, seconds, is_first in recent if is_first),
                itl_s=tuple(seconds for _, seconds, is_first in recent if not is_first),
                gauges=tuple(self._gauges),
                streams=tuple(reversed(self._streams)),
            )

    async def _run(self) -> None:
        limits = httpx.Limits(max_connections=self.max_open + 1)
        async with httpx.AsyncClient(base_url=self.url, timeout=30.0, limits=limits, trust_env=False) as client:
            tasks = {asyncio.create_task(self._poll(client))}
            rng = random.Random(self.seed)
            due = rng.expovariate(1.0)
            before_s = time.monotonic()
            while not self._stopping.is_set():
                await asyncio.sleep(min(_LONGEST_NAP_S, max(due, 0.0) / self.rate if self.rate else _LONGEST_NAP_S))
                now_s = time.monotonic()
                due -= self.rate * (now_s - before_s)  # of a Poisson process of rate 1, run at our speed
                before_s = now_s
                while due <= 0:
                    due += rng.expovariate(1.0)
                    tasks = {task for task in tasks if not task.done()}
                    tasks.add(asyncio.create_task(self._ask(client, rng.choice(self.prompts), len(tasks))))
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _poll(self, client: httpx.AsyncClient) -> None:
        while True:
            try:
                text = (await client.get("/metrics")).text
                values = {family.name: family.samples[0].value for family in text_string_to_metric_families(text)
                          if family.name in _GAUGES}  # fmt: skip
                with self._lock:
                    self._gauges.append(Gauges(time.monotonic(), *(values.get(name, 0.0) for name in _GAUGES)))
            except httpx.HTTPError:
                pass  # the requests themselves will say that the server is away
            await asyncio.sleep(_POLL_S)

    async def _ask(self, client: httpx.AsyncClient, prompt: str, num_open: int) -> None:
        with self._lock:
            exchange = Exchange(self._counts["sent"], prompt, time.monotonic())
            self._counts["sent"] += 1
            self._streams.append(exchange)
        try:
            if num_open > self.max_open:
                exchange.finish_reason = "error"
            else:
                await self._stream(client, exchange)
        except (httpx.HTTPError, json.JSONDecodeError, KeyError):
            exchange.finish_reason = "error"
        with self._lock:
            self._counts["failed" if exchange.finish_reason in (None, "error") else "finished"] += 1

    async def _stream(self, client: httpx.AsyncClient, exchange: Exchange) -> None:
        body = {
            "model": self.model,
            "prompt": exchange.prompt,
            "max_tokens": self.max_tokens,
            "ignore_eos": True,
            "seed": exchange.number,
            "stream": True,
            "stream_options": {"chunk_tokens": self.chunk_tokens},
        }
        async with client.stream("POST", "/v1/completions", json=body) as response:
            response.raise_for_status()
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    choice = json.loads(line.removeprefix("data: "))["choices"][0]
                    self._saw(exchange, choice["text"], choice["finish_reason"])

    def _saw(self, exchange: Exchange, text: str, finish_reason: str | None) -> None:
        now_s = time.monotonic()
        with self._lock:
            is_first = exchange.last_s is None
            self._latencies.append((now_s, now_s - (exchange.last_s or exchange.sent_s), is_first))
            exchange.first_s, exchange.last_s = exchange.first_s or now_s, now_s
            exchange.text += text
            exchange.finish_reason = finish_reason or exchange.finish_reason
