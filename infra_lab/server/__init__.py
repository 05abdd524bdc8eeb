"""The server: OpenAI's API, the Open Inference Protocol and probes over one `AsyncEngine`.

    client ─ uvicorn ─ gate ──────────── route ───────── generation ──── AsyncEngine
               │         │                 │                  │
      slow or endless    id, key, body,    fields, template,  one mailbox a client:
      heads, stalled     rate, log         tokens, formats    merges, times out, cuts off
      readers

Nothing here imports FastAPI before an app is made: `infra_lab.server` is also where the configuration lives.
"""

from typing import TYPE_CHECKING

from infra_lab.errors import MissingExtraError
from infra_lab.server.config import ServerConfig
from infra_lab.server.keys import ApiKey
from infra_lab.server.served import ServedEngine

if TYPE_CHECKING:
    from fastapi import FastAPI

__all__ = ["ApiKey", "ServedEngine", "ServerConfig", "create_app"]


def create_app(served: ServedEngine, config: ServerConfig | None = None) -> "FastAPI":
    """Return an ASGI app that serves one engine. Whoever made the engine shuts it down.

    Raises MissingExtraError without FastAPI and prometheus-client.
    """
    try:
        from infra_lab.server.app import build_app
    except ModuleNotFoundError as error:
        raise missing_extra(error) from error
    return build_app(served, config or ServerConfig())


def missing_extra(error: ModuleNotFoundError) -> MissingExtraError:
    """Say which extra brings the module that was not found."""
    return MissingExtraError(f"the server needs {error.name}: pip install 'infra-lab[server]'")
