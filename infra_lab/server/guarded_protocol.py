"""uvicorn's HTTP protocol, with the limits that it has not: on how slowly a head may come and a response be read."""

import asyncio
import socket
from http import HTTPStatus
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from infra_lab.server.config import ServerConfig

MAX_HEAD_BYTES = 32 << 10
"""A request's line and headers."""
WRITE_BUFFER_BYTES = 64 << 10
"""What the process keeps for one client that does not read. The kernel gets as much and takes twice that; left to itself it
takes megabytes, and a client that has stopped reading would be noticed a thousand events later."""


class GuardedProtocol(H11Protocol):
    """One connection. It is closed if a request's head takes too long, or the rest of a body that was answered before its
    end, and aborted if its client stops reading.

    uvicorn's own keep-alive limit covers the time between two requests, and h11's the size of a head.
    """

    limits: ClassVar[ServerConfig]
    _head_timer: asyncio.TimerHandle | None = None
    _stall_timer: asyncio.TimerHandle | None = None
    _rest_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock: a connection that says nothing is as slow as one that says little."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, WRITE_BUFFER_BYTES)
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        """Pass it on, and see whether the head is complete."""
        super().data_received(data)
        self._watch_head()

    def on_response_complete(self) -> None:
        """Some answers do not wait for the body (a wrong key, a wrong host): the rest of it may come, but not for ever."""
        super().on_response_complete()
        self._stop(self._rest_timer)
        if self._awaits_rest():
            self._rest_timer = self.loop.call_later(self.limits.body_timeout_s, self._rest_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clocks."""
        self._stop(self._head_timer)
        self._stop(self._stall_timer)
        self._stop(self._rest_timer)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client has not read what was sent: it must take some of it in time."""
        super().pause_writing()
        self._stop(self._stall_timer)
        self._stall_timer = self.loop.call_later(self.limits.stalled_reader_s, self.transport.abort)

    def resume_writing(self) -> None:
        """It has."""
        super().resume_writing()
        self._stop(self._stall_timer)

    def _watch_head(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._stop(self._head_timer)
            self._head_timer = None
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(self.limits.head_timeout_s, self._head_is_late)

    def _head_is_late(self) -> None:
        if self.transport.is_closing() or self.conn.their_state is not h11.IDLE:
            return
        status = HTTPStatus.REQUEST_TIMEOUT
        answer = f"HTTP/1.1 {status} {status.phrase}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
        self.transport.write(answer.encode())
        self.transport.close()

    def _awaits_rest(self) -> bool:
        return self.conn.our_state is h11.DONE and self.conn.their_state is h11.SEND_BODY

    def _rest_is_late(self) -> None:
        if self._awaits_rest():
            self.transport.close()

    @staticmethod
    def _stop(timer: asyncio.TimerHandle | None) -> None:
        if timer is not None:
            timer.cancel()


def guarded_protocol(config: ServerConfig) -> type[GuardedProtocol]:
    """Return the protocol class with these limits; uvicorn makes an instance a connection."""
    members: dict[str, Any] = {"limits": config}
    return type("ConfiguredProtocol", (GuardedProtocol,), members)
