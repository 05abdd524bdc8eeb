"""Reads a request's body before anything else looks at it: so many bytes, in so much time."""

import asyncio
import time
from collections.abc import MutableMapping
from typing import Any

from infra_lab.server.api_error import CLIENT_GONE, ApiError
from infra_lab.server.config import ServerConfig
from infra_lab.server.generation import Receive

PATIENCE_BYTES, PATIENCE_S = 64 << 20, 5.0
"""A client that sends too much is heard out this far: who is cut off while sending often never reads the answer."""


async def read_body(receive: Receive, headers: dict[bytes, bytes], config: ServerConfig) -> bytes:
    """Return the whole body. Raises ApiError: 413 if it is too big, however it is framed; 408 if it is too slow."""
    limit = config.max_body_bytes
    declared = int(headers.get(b"content-length", 0))
    # Refused unread: who waits for "100 Continue" is not sending yet, and the other would send for too long.
    if declared > limit and (b"expect" in headers or declared > PATIENCE_BYTES):
        raise _too_large(limit)
    try:
        async with asyncio.timeout(config.body_timeout_s):
            return await _read(receive, limit)
    except TimeoutError:
        raise ApiError(
            408,
            f"the body was not complete after {config.body_timeout_s:g} s",
            kind="timeout_error",
            code="body_timeout",
            headers={"Connection": "close"},
        ) from None


async def _read(receive: Receive, limit: int) -> bytes:
    parts: list[bytes] = []
    size, started_s = 0, time.monotonic()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ApiError(CLIENT_GONE, "the client left before its body was complete", code="client_gone")
        part = message.get("body", b"")
        size += len(part)
        if size <= limit:
            parts.append(part)
        else:
            parts.clear()
        is_over = not message.get("more_body", False)
        out_of_patience = size > PATIENCE_BYTES or time.monotonic() - started_s > PATIENCE_S
        if size > limit and (is_over or out_of_patience):
            raise _too_large(limit)
        if is_over:
            return b"".join(parts)


def replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives the body once, and then what the client does (which is to leave)."""
    is_given = False

    async def replayed() -> MutableMapping[str, Any]:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed


def _too_large(limit: int) -> ApiError:
    return ApiError(
        413, f"the body is larger than {limit} bytes, the limit", code="body_too_large", headers={"Connection": "close"}
    )
