"""`LocalServer`: the real server on 127.0.0.1, on a thread of the notebook's kernel, so that a lesson can look into both."""

import asyncio
import threading
from types import TracebackType
from typing import Any, Self

from infra_lab.engine.async_engine import AsyncEngine
from infra_lab.errors import ConfigError
from infra_lab.server import ServedEngine, ServerConfig, create_app, missing_extra

START_TIMEOUT_S = 30.0


class LocalServer:
    """Serves a model until `close`. Keyword arguments are the fields of `EngineConfig`.

    A kernel has one at a time: making another closes the one before, so that a cell can be run again. Raises
    MissingExtraError without uvicorn and FastAPI, and what loading the model raises.
    """

    _open: "LocalServer | None" = None

    def __init__(self, model: str = "tiny", *, config: ServerConfig | None = None, **settings: Any) -> None:
        try:
            from infra_lab.server.run import listen, server_of
        except ModuleNotFoundError as error:
            raise missing_extra(error) from error
        config = config or ServerConfig()
        if LocalServer._open is not None:
            LocalServer._open.close()
        self.engine = AsyncEngine.start(model, **settings)
        app = create_app(ServedEngine(self.engine, (model,)), config)
        self._socket = listen("127.0.0.1", 0)
        self.port: int = self._socket.getsockname()[1]
        self._server = server_of(app, config)
        self._thread = threading.Thread(target=self._run, name="infra-lab-local-server", daemon=True)
        self._started = threading.Event()
        self._thread.start()
        if not self._started.wait(START_TIMEOUT_S) or not self._server.started:
            self._server.should_exit = True  # should it come up yet, it ends, and frees the model
            raise ConfigError(
                f"the server did not start within {START_TIMEOUT_S:g} s; restart the kernel and try again"
            )
        LocalServer._open = self

    @property
    def url(self) -> str:
        """Where it listens, such as http://127.0.0.1:40123."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def is_running(self) -> bool:
        """Whether it answers."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Stop listening, end what runs, and free the model; nothing happens the second time."""
        self._server.should_exit = True
        self._thread.join()
        if LocalServer._open is self:
            LocalServer._open = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        serving = asyncio.ensure_future(self._server.serve(sockets=[self._socket]))
        while not self._server.started and not serving.done():
            await asyncio.sleep(0.01)
        self._started.set()
        try:
            await serving
        finally:
            self._started.set()
            self._socket.close()
            await self.engine.shutdown(drain=False)
