"""What every request passes, in this order: an id, a place, the host, the key, the body; and what it leaves: a log line."""

import json
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from infra_lab.server.api_error import CLIENT_GONE, ApiError, from_exception, invalid, too_busy
from infra_lab.server.body import read_body, replay
from infra_lab.server.context import Context, Scope, request_id_from
from infra_lab.server.generation import Receive
from infra_lab.server.keys import ApiKey, find_key
from infra_lab.server.request_log import log_request
from infra_lab.server.runtime import Runtime

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
OPEN_PATHS = frozenset({"/health", "/ready", "/metrics", "/v2/health/live", "/v2/health/ready"})
"""For probes and scrapers, which have no key; they show numbers, and nothing of anybody's text."""
logger = logging.getLogger(__name__)


class Gate:
    """ASGI middleware around all routes. Nothing raised inside gets past it: it answers with an error, or ends the stream."""

    def __init__(self, app: App, runtime: Runtime) -> None:
        self._app, self._runtime = app, runtime
        self._num_in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers: dict[bytes, bytes] = dict(scope["headers"])
        context = Context(request_id_from(headers.get(b"x-request-id", b"").decode("latin-1")), time.perf_counter())
        context.put_in(scope)
        response = _Response(send, context.request_id)
        metrics = self._runtime.metrics
        metrics.http_in_flight.inc()
        self._num_in_flight += 1
        try:
            try:
                self._check(scope, headers, context)
                body = await read_body(receive, headers, self._runtime.config)
                context.body_bytes = len(body)
                await self._app(scope, replay(body, receive), response.send)
            except Exception as error:
                answer = from_exception(error)
                if answer is not error and answer.status == 500:
                    logger.exception("request %s failed", context.request_id)
                await response.fail(answer, scope["path"])
        finally:
            self._runtime.end(context)
            self._num_in_flight -= 1
            metrics.http_in_flight.dec()
            self._account(scope, context, response)

    def _check(self, scope: Scope, headers: dict[bytes, bytes], context: Context) -> None:
        config, is_probe = self._runtime.config, scope["path"] in OPEN_PATHS
        if self._num_in_flight > config.max_in_flight and not is_probe:  # who is only busy must not be restarted for it
            raise too_busy(config.max_in_flight)
        if config.allowed_hosts:
            host = _without_port(headers.get(b"host", b"").decode("latin-1"))
            if host not in config.allowed_hosts:
                raise ApiError(403, f"this server does not answer to the host {host!r}", code="host_not_allowed")
        if config.api_keys and not is_probe:
            context.key = _authenticate(headers.get(b"authorization", b""), config.api_keys)
        context.timeout_s = _timeout_from(headers.get(b"x-request-timeout"))

    def _account(self, scope: Scope, context: Context, response: "_Response") -> None:
        duration_s = time.perf_counter() - context.started_s
        route = getattr(scope.get("route"), "path", "unmatched")
        generation = context.generation
        status = response.status or CLIENT_GONE
        if generation is not None and generation.error is not None:
            status = generation.error.status  # a stream's 200 was sent before anybody knew
        method = scope["method"] if scope["method"] in ("GET", "POST", "HEAD", "OPTIONS") else "other"
        self._runtime.metrics.http_requests.labels(method, route, str(status)).inc()
        self._runtime.metrics.http_latency.labels(method, route).observe(duration_s)
        log_request(context, method=method, route=route, status=status, duration_s=duration_s)


class _Response:
    """Watches what goes out, and signs it with the request's id."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send, self._request_id = send, request_id.encode("latin-1")
        self.status: int | None = None
        self._is_complete = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message["headers"], (b"x-request-id", self._request_id)]
        elif not message.get("more_body", False):
            self._is_complete = True
        await self._send(message)

    async def fail(self, error: ApiError, path: str) -> None:
        if self.status is None:
            body = json.dumps({"error": error.message} if path.startswith("/v2") else error.body()).encode()
            headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **error.headers}
            if error.status == 401:
                headers["WWW-Authenticate"] = "Bearer"
            pairs = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
            await self.send({"type": "http.response.start", "status": error.status, "headers": pairs})
            await self.send({"type": "http.response.body", "body": body})
        elif not self._is_complete:
            await self.send({"type": "http.response.body", "body": b""})


def _authenticate(header: bytes, keys: tuple[ApiKey, ...]) -> ApiKey:
    scheme, _, secret = header.partition(b" ")
    key = find_key(keys, secret.strip()) if scheme.lower() == b"bearer" else None
    if key is None:
        what = "the API key is not known here" if header else "an API key is needed: Authorization: Bearer <key>"
        raise ApiError(401, what, kind="authentication_error", code="invalid_api_key")
    return key


def _timeout_from(header: bytes | None) -> float | None:
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        seconds = float("nan")
    if not 0 < seconds < float("inf"):
        raise invalid(f"X-Request-Timeout is {header.decode('latin-1')!r}; expected seconds, more than 0")
    return seconds


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[: host.find("]") + 1]
    return host.partition(":")[0].lower()
