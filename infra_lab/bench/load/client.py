"""Sends requests over HTTP and reads their streams."""

import asyncio
import json
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import httpx

from infra_lab.bench.load.answer import AnswerError, AnswerReader
from infra_lab.bench.load.prompts import TokenScale, probe_text, scale_from_probes
from infra_lab.bench.load.record import RequestRecord
from infra_lab.bench.load.sse import SSEError, SSEParser
from infra_lab.bench.load.target import Target, TargetError

_SETUP_TIMEOUT_S = 60.0
_KEEP_ALIVE_S = 2.0
"""Less than servers keep an idle connection (uvicorn: 5 s), or a request goes out on one that is just being closed."""
_CONNECTIONS_A_POOL = 32
"""httpx looks through its whole pool at every request, so many small pools are cheaper than one large one."""


class LoadClient:
    """Connections to one target, at most `max_connections`. Use with `async with`."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._places = asyncio.Semaphore(target.max_connections)
        num_pools = -(-target.max_connections // _CONNECTIONS_A_POOL)
        ssl_context = httpx.create_ssl_context()
        # No limit a pool: a pool must never make a request wait that has got a place.
        limits = httpx.Limits(
            max_connections=None, max_keepalive_connections=_CONNECTIONS_A_POOL, keepalive_expiry=_KEEP_ALIVE_S
        )
        self._pools = [
            httpx.AsyncClient(verify=ssl_context, trust_env=False, timeout=None, limits=limits, headers=target.headers)
            for _ in range(num_pools)
        ]
        self._num_in_pool = [0] * num_pools

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pool in self._pools:
            await pool.aclose()

    # ---- before the run ----

    async def first_model(self) -> str:
        """Return the first model that the server lists. Raises TargetError."""
        content = await self._ask("GET", "/models")
        try:
            return str(content["data"][0]["id"])
        except (KeyError, IndexError, TypeError) as error:
            raise TargetError(f"{self.target.base_url}/models lists no model; name one with --model") from error

    async def token_scale(self) -> TokenScale:
        """Have the server count two texts. A server that gives no usage leaves a word to be a token. Raises TargetError."""
        counts: list[int] = []
        for repeats in (1, 2):
            body = self.target.body(probe_text(repeats), 1, stream=False)
            content = await self._ask("POST", self.target.generate_url.removeprefix(self.target.base_url), body)
            count = (content.get("usage") or {}).get("prompt_tokens")
            if not isinstance(count, int):
                return TokenScale()
            counts.append(count)
        return scale_from_probes(*counts)

    async def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        url = self.target.base_url + path
        try:
            response = await self._pools[0].request(method, url, json=body, timeout=_SETUP_TIMEOUT_S)
            content = response.json() if response.is_success else None
        except (httpx.HTTPError, ValueError) as error:
            raise TargetError(f"{url}: {_describe(error)}; is an OpenAI-compatible server running there?") from error
        if not isinstance(content, dict):
            raise TargetError(f"{url} answers {response.status_code}: {response.text[:300]}")
        return content

    # ---- the run ----

    async def send(self, record: RequestRecord, prompt: str, now: Callable[[], float]) -> None:
        """Send one request, and write all that happens into its record, errors of the server and the network included.

        now: seconds from the start of the run. Waiting for a place among the connections counts as latency.
        """
        record.launched_s = now()
        try:
            left_s = record.scheduled_s + self.target.timeout_s - now()
            async with asyncio.timeout(left_s), self._places:
                record.sent_s = now()
                await self._stream(record, prompt, now)
        except AnswerError as error:
            record.error, record.error_detail = error.kind, str(error)
        except TimeoutError:
            record.error, record.error_detail = "timeout", f"not over {self.target.timeout_s:g} s after it was due"
        except (httpx.HTTPError, SSEError) as error:
            record.error, record.error_detail = _kind(error), _describe(error)

    async def _stream(self, record: RequestRecord, prompt: str, now: Callable[[], float]) -> None:
        body = json.dumps(self.target.body(prompt, record.planned_output_tokens)).encode()
        pool = min(range(len(self._pools)), key=self._num_in_pool.__getitem__)
        self._num_in_pool[pool] += 1
        try:
            async with self._pools[pool].stream("POST", self.target.generate_url, content=body) as response:
                if response.status_code != 200:
                    detail = (await response.aread())[:300].decode(errors="replace")
                    raise AnswerError(f"HTTP {response.status_code}", detail)
                parser, answer = SSEParser(), AnswerReader(record)
                async for chunk in response.aiter_bytes():
                    now_s = now()
                    for event in parser.feed(chunk):
                        answer.take(event.data, now_s)
                answer.end(now())
        finally:
            self._num_in_pool[pool] -= 1


def _kind(error: Exception) -> str:
    if isinstance(error, httpx.ConnectError):
        return "no connection"
    if isinstance(error, httpx.RemoteProtocolError | httpx.ReadError | httpx.WriteError):
        return "connection lost"
    return type(error).__name__


def _describe(error: Exception) -> str:
    return str(error) or type(error).__name__
