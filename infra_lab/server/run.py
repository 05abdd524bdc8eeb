"""Runs a server from start to end: checks who could reach it, listens, loads the model, serves, and cleans up."""

import asyncio
import gc
import socket
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from infra_lab.server import create_app, missing_extra
from infra_lab.server.config import ServerConfig
from infra_lab.server.listening import check_exposure, for_host, listen
from infra_lab.server.request_log import log_as_json
from infra_lab.server.served import ServedEngine

if TYPE_CHECKING:
    from fastapi import FastAPI

    from infra_lab.server.draining_server import DrainingServer

__all__ = ["listen", "run", "run_app", "serve", "server_of"]


def serve(
    model: str = "tiny",
    *,
    served_model_names: Sequence[str] = (),
    host: str = "127.0.0.1",
    port: int = 8000,
    config: ServerConfig | None = None,
    insecure_no_auth: bool = False,
    engine_settings: Mapping[str, Any] | None = None,
) -> None:
    """Load a model and serve it until SIGTERM or SIGINT. Call it from the main thread.

    engine_settings: fields of `EngineConfig`.

    Raises ConfigError for an address that everybody can reach without a key, or that is taken, MissingExtraError without
    the extra "server", and what loading a model raises.
    """
    config = config or ServerConfig()
    check_exposure(host, config, insecure_no_auth=insecure_no_auth)
    with listen(host, port) as listener:  # before the model is loaded: a port that is taken should be known at once
        from infra_lab.engine.async_engine import AsyncEngine

        engine = AsyncEngine.start(model, **(engine_settings or {}))
        try:
            names = tuple(served_model_names) or (model,)
            run(ServedEngine(engine, names), for_host(host, config), listener)
        finally:
            asyncio.run(engine.shutdown(drain=False))


def run(served: ServedEngine, config: ServerConfig, listener: socket.socket) -> None:
    """Serve an engine on a socket of `listen` until SIGTERM or SIGINT; the engine stays open."""
    run_app(create_app(served, config), config, listener)


def run_app(app: "FastAPI", config: ServerConfig, listener: socket.socket) -> None:
    """Serve an app of `create_app` as `run` does: this process is the server, and nothing else."""
    server = server_of(app, config)
    log_as_json()
    gc.collect()
    gc.freeze()  # what was loaded stays: walking over it again and again takes a twelfth of the server's time
    server.run(sockets=[listener])


def server_of(app: "FastAPI", config: ServerConfig) -> "DrainingServer":
    """Return the uvicorn server for an app of `create_app`, with the limits of `config` on its connections.

    Raises MissingExtraError without uvicorn.
    """
    try:
        from infra_lab.server.draining_server import DrainingServer
    except ModuleNotFoundError as error:
        raise missing_extra(error) from error
    return DrainingServer(app, config)
