"""An HTTP client that does nothing but count: events, bytes and times of streams, over raw asyncio.

A client as comfortable as httpx spends more time on an event than a server does, and would be what a benchmark of the
server measures. This one looks for "data: " and for the end, which is sound for streams whose events hold no CR.
"""

import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from infra_lab.errors import InfraLabError

MARK = b"data: "
END = b"\r\n0\r\n\r\n"
"""The last chunk of a chunked body."""
_TAIL_BYTES = 1024
"""Holds the event with the token counts, and "[DONE]"."""
_TOKENS = re.compile(rb'"completion_tokens": ?(\d+)')


@dataclass(slots=True)
class StreamCount:
    """One request's stream. Times in seconds of `perf_counter`."""

    sent_s: float
    first_s: float = 0.0
    """When its first event came."""
    ended_s: float = 0.0
    events: int = 0
    num_bytes: int = 0
    """With heads and framing."""
    tokens: int = 0
    """As the server counts."""
    is_ok: bool = False
    """Status 200, and all of it: "[DONE]" and the last chunk."""

    @property
    def ttft_s(self) -> float:
        """Until the first event."""
        return self.first_s - self.sent_s

    @property
    def tokens_per_s(self) -> float:
        """Over the stream's whole life."""
        return self.tokens / (self.ended_s - self.sent_s)


class LeanConnection(asyncio.Protocol):
    """One keep-alive connection: one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._count = StreamCount(0.0)
        self._tail = b""
        self._over: asyncio.Future[None] | None = None

    @classmethod
    async def open(cls, port: int) -> "LeanConnection":
        """Connect to 127.0.0.1."""
        _, connection = await asyncio.get_running_loop().create_connection(cls, "127.0.0.1", port)
        return connection

    async def request(self, raw: bytes, timeout_s: float) -> StreamCount:
        """Send a request, and count until its stream ends, the connection does, or the time is over."""
        assert self._transport is not None
        count = self._count = StreamCount(perf_counter())
        self._tail, self._over = b"", asyncio.get_running_loop().create_future()
        if not self._transport.is_closing():
            self._transport.write(raw)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._over, timeout_s)
        count.ended_s = perf_counter()
        found = _TOKENS.findall(self._tail)
        count.tokens = int(found[-1]) if found else 0
        if not count.is_ok:
            self.close()
        return count

    def close(self) -> None:
        """Drop the connection."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Count what came. A mark may be cut by the network, so the end of what came before is looked at again."""
        count = self._count
        if not count.num_bytes and not data.startswith(b"HTTP/1.1 200 "):
            self._finish(False)
            return
        count.num_bytes += len(data)
        num_new = (self._tail[1 - len(MARK) :] + data).count(MARK)
        if num_new and not count.events:
            count.first_s = perf_counter()
        count.events += num_new
        self._tail = data[-_TAIL_BYTES:] if len(data) >= _TAIL_BYTES else (self._tail + data)[-_TAIL_BYTES:]
        if self._tail.endswith(END):
            self._finish(b"[DONE]" in self._tail)

    def connection_lost(self, exc: Exception | None) -> None:
        """Whatever was open has failed."""
        self._finish(False)

    def _finish(self, is_ok: bool) -> None:
        if self._over is not None and not self._over.done():
            self._count.is_ok = is_ok
            self._over.set_result(None)


def post(port: int, path: str, body: Mapping[str, Any]) -> bytes:
    """Return a POST request as bytes."""
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


async def drive(
    port: int, raw: bytes, *, num_requests: int, concurrency: int, timeout_s: float = 120.0
) -> list[StreamCount]:
    """Send the same request so often over so many connections, each with one at a time. A failed one is not repeated.

    All connections are open before the first request. Raises InfraLabError if they cannot be.
    """
    counts: list[StreamCount] = []
    left = iter(range(num_requests))
    connections: list[LeanConnection] = []

    async def work(slot: int) -> None:
        for _ in left:
            counts.append(await connections[slot].request(raw, timeout_s))
            if not counts[-1].is_ok:
                connections[slot] = await LeanConnection.open(port)

    try:
        connections += [await LeanConnection.open(port) for _ in range(min(concurrency, num_requests))]
        await asyncio.gather(*(work(slot) for slot in range(len(connections))))
    except OSError as error:
        raise InfraLabError(
            f"no connection to 127.0.0.1:{port}: {error}; is the limit of open files too low?"
        ) from error
    finally:
        for connection in connections:
            connection.close()
    return counts


def span_s(counts: Sequence[StreamCount]) -> float:
    """From the first request to the last end."""
    return max(count.ended_s for count in counts) - min(count.sent_s for count in counts)
