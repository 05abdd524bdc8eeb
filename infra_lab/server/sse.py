"""Server-sent events: a response that sends what a generation has, when it has it.

The response starts with the first event or the first heartbeat, whichever is earlier. So a request that the engine
refuses still gets a status of its own, and one that waits long is not given up by a proxy on its way.
"""

import asyncio
from collections.abc import Sequence
from typing import Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from infra_lab.server.api_error import ApiError
from infra_lab.server.generation import Generation
from infra_lab.server.mailbox import Piece

HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would hold events back to fill its buffer
]
HEARTBEAT = b": ping\n\n"
DONE = b"data: [DONE]\n\n"


class StreamFormat(Protocol):
    """Writes one kind of stream. All methods return whole events, as bytes."""

    def pieces(self, pieces: Sequence[Piece]) -> bytes:
        """The events of what is new."""
        ...

    def end(self, generation: Generation) -> bytes:
        """What comes after the last piece."""
        ...

    def error(self, error: ApiError) -> bytes:
        """What comes instead of it when the stream is cut off."""
        ...


class EventStream(Response):
    """The response to a streaming request. Everything that is ready goes out in one send."""

    def __init__(self, generation: Generation, stream_format: StreamFormat, heartbeat_s: float) -> None:
        self.status_code = 200
        self.background = None
        self.raw_headers = HEADERS
        self._generation, self._format, self._heartbeat_s = generation, stream_format, heartbeat_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the end, an error, or the client's leaving (which the generation reports as an error)."""
        # In a task of its own: waking one that sits under twenty layers of middleware goes through all of them each time.
        await asyncio.create_task(self._send_all(send))

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        generation, stream_format = self._generation, self._format
        wait_s = 0.0  # `stream` has waited already
        try:
            while True:
                pieces = await generation.take(wait_s)
                wait_s = self._heartbeat_s
                if pieces:
                    events = stream_format.pieces(pieces)
                elif generation.is_over:
                    break
                else:
                    events = HEARTBEAT
                if events:
                    await send({"type": "http.response.body", "body": events, "more_body": True})
            last = stream_format.end(generation)
        except ApiError as error:
            last = stream_format.error(error)
        await send({"type": "http.response.body", "body": last})


async def stream(generation: Generation, stream_format: StreamFormat, heartbeat_s: float) -> EventStream:
    """Return the response once there is something to send. Raises ApiError if the job was refused before that."""
    await generation.opened(heartbeat_s)
    if generation.error is not None and generation.num_output_tokens == 0:
        raise generation.error
    return EventStream(generation, stream_format, heartbeat_s)
