"""uvicorn, with an end that lets those who are in finish.

SIGTERM ─▶ draining: /ready and new requests get 503, streams go on
             │ nothing runs, or drain_s is over (then: an error event to who is left)
             ▼
           closed                                            a second signal: at once
"""

import logging
import socket
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from infra_lab.server.api_error import shutting_down
from infra_lab.server.config import ServerConfig
from infra_lab.server.guarded_protocol import MAX_HEAD_BYTES, guarded_protocol
from infra_lab.server.listening import BACKLOG, url_of
from infra_lab.server.runtime import Runtime

if TYPE_CHECKING:
    from fastapi import FastAPI

KEEP_ALIVE_S = 75
"""Longer than the usual 60 s of a proxy in front: the one that reuses a connection must be the first to drop it."""
CLOSING_S = 5
"""For connections to take their last bytes."""
logger = logging.getLogger("infra_lab.server")


class DrainingServer(uvicorn.Server):
    """A server that goes on answering, with 503, while those who are in finish. It serves an app of `create_app`."""

    def __init__(self, app: "FastAPI", config: ServerConfig) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=guarded_protocol(config),
                ws="none",
                h11_max_incomplete_event_size=MAX_HEAD_BYTES,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=CLOSING_S,
                backlog=BACKLOG,
                server_header=False,
                access_log=False,
                log_config=None,
            )
        )
        runtime = app.state.runtime
        assert isinstance(runtime, Runtime)
        self._runtime = runtime

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say where."""
        await super().startup(sockets)
        logger.info("%s is served on %s", self._runtime.served.name, ", ".join(url_of(one) for one in sockets or []))

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """First signal: drain. Second: stop at once."""
        if self._runtime.is_draining:
            self.should_exit = self.force_exit = True
        self._runtime.drain()

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether to stop listening now."""
        return await super().on_tick(counter) or self._runtime.is_drained()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Cut off what still runs, close what is open."""
        self._runtime.drain()
        self._runtime.cut_all(shutting_down())
        await super().shutdown(sockets)
