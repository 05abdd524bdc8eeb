"""A model that is exactly as fast as the server can send: its next tokens are there when the last ones have gone out.

    engine thread   step ─ tokens ──▶ waits ┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄▶ step ─ …
    event loop                   └──▶ send, send, … the last ─┘

A model that takes no time at all runs ahead of the server, and what waits is merged: that shows tokens a second, but few
events. A model with a fixed speed shows its own. With this one every token is an event, and the event rate is the server's.
"""

import threading
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from infra_lab.scheduler.plan import NO_TOKEN, Executor, StepPlan, StepResult

MAX_WAIT_S = 0.2
"""For a token that is never sent, as when its client has gone."""
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


class Handshake:
    """Counts what is made and what is sent. `owe` belongs to the engine's thread, `sent` to the event loop's."""

    def __init__(self) -> None:
        self._num_owed = 0
        self._is_paid = threading.Event()
        self._is_paid.set()

    def owe(self, num_tokens: int) -> None:
        """So many tokens will come out of this step; call it before anybody can see them."""
        self._num_owed = num_tokens
        if num_tokens:
            self._is_paid.clear()

    def sent(self) -> None:
        """One token has been given to its connection."""
        self._num_owed -= 1
        if self._num_owed == 0:
            self._is_paid.set()

    def wait(self) -> bool:
        """Block until all that is owed has been sent; return False if that takes too long."""
        return self._is_paid.wait(MAX_WAIT_S)


class PacedExecutor:
    """An executor that starts a step when the last one's tokens have been sent (see `Executor` for the contract)."""

    def __init__(self, inner: Executor, handshake: Handshake) -> None:
        self._inner, self._handshake = inner, handshake

    def execute(self, plan: StepPlan) -> StepResult:
        """Wait, then let the inner executor sample."""
        self._handshake.wait()
        result = self._inner.execute(plan)
        self._handshake.owe(sum(token != NO_TOKEN for token in result.token_ids))
        return result

    def close(self) -> None:
        """Close the inner executor."""
        self._inner.close()


class SendCounter:
    """ASGI middleware that reports every part of a stream but the last, which has no token."""

    def __init__(self, app: App, handshake: Handshake) -> None:
        self._app, self._handshake = app, handshake

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass everything on."""

        async def counted(message: Message) -> None:
            await send(message)
            if message.get("more_body"):
                self._handshake.sent()

        await self._app(scope, receive, counted)
