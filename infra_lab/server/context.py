"""What is known about one HTTP request; the gate makes it, routes fill it in, the log and the metrics read it."""

import re
import uuid
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any

from infra_lab.server.generation import Generation
from infra_lab.server.keys import ApiKey

_SAFE_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_STATE = "infra_lab.context"
Scope = MutableMapping[str, Any]


@dataclass(slots=True)
class Context:
    """One request."""

    request_id: str
    started_s: float
    key: ApiKey | None = None
    generation: Generation | None = None
    is_stream: bool = False
    body_bytes: int = 0
    """Size of the body, which bounds all work on what is in it."""
    timeout_s: float | None = None
    """From X-Request-Timeout."""
    prompt: str | None = None
    """Kept only if the server logs prompts."""
    engine_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Unique, unlike an id that a client may send twice."""

    def put_in(self, scope: Scope) -> None:
        """Let the routes find it."""
        scope[_STATE] = self


def context_of(scope: Scope) -> Context:
    """Return the context that the gate made."""
    context = scope[_STATE]
    assert isinstance(context, Context)
    return context


def request_id_from(header: str | None) -> str:
    """Keep a client's X-Request-Id if it is short and harmless in a log, else make one."""
    return header if header and _SAFE_ID.fullmatch(header) else uuid.uuid4().hex
