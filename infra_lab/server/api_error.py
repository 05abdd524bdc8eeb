"""Errors as OpenAI's clients expect them: {"error": {"message", "type", "param", "code"}} and a status that says what to do."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from infra_lab.errors import InvalidRequestError, MissingExtraError, QueueFullError

MAX_MESSAGE_LENGTH = 600
"""A message quotes what a client sent, and that may be long."""
CLIENT_GONE = 499
"""Nginx's status for a client that left; it is only ever logged."""


class ApiError(Exception):
    """Why a request gets no answer, or no more of it."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message if len(message) <= MAX_MESSAGE_LENGTH else message[:MAX_MESSAGE_LENGTH] + " …"
        self.kind, self.param, self.code = kind, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The error object of OpenAI's API."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def event(self) -> bytes:
        """The same as an event in a stream."""
        return b"data: " + json.dumps(self.body()).encode() + b"\n\n"


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """400: the request can never be served as it is."""
    return ApiError(400, message, param=param, code=code)


def too_many(message: str, retry_after_s: int, code: str = "rate_limit_exceeded") -> ApiError:
    """429: the same request may be served later."""
    return ApiError(
        429, message, kind="rate_limit_error", code=code, headers={"Retry-After": str(max(1, retry_after_s))}
    )


def too_busy(limit: int) -> ApiError:
    """503: nothing was looked at; another server, or the same in a moment, will answer."""
    return ApiError(
        503,
        f"the server answers {limit} requests, its limit; try again",
        kind="service_unavailable",
        code="too_busy",
        headers={"Retry-After": "1", "Connection": "close"},
    )


def shutting_down() -> ApiError:
    """503: this server goes away; another one, or the same in a moment, will answer."""
    return ApiError(
        503,
        "the server is shutting down and takes no more requests; try again",
        kind="service_unavailable",
        code="shutting_down",
        headers={"Retry-After": "5", "Connection": "close"},
    )


def from_exception(error: Exception) -> ApiError:
    """What an exception of the engine means for a client; what is nobody's fault but ours is 500, without details."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, InvalidRequestError):
        return invalid(str(error), param=_field_named_in(str(error)))
    if isinstance(error, QueueFullError):
        return too_many(str(error), 1, "queue_full")
    if isinstance(error, MissingExtraError):
        return ApiError(501, str(error), kind="not_implemented_error", code="missing_extra")
    from infra_lab.engine.async_engine import EngineClosedError  # its module imports torch, this one must not

    if isinstance(error, EngineClosedError):
        return shutting_down()
    return ApiError(
        500, "the server failed on this request; its log says why", kind="server_error", code="internal_error"
    )


def from_validation(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """The most telling of pydantic's complaints about the first field that it complains about, in one line."""
    field = _place(errors[0])[:1]
    told = max((error for error in errors if _place(error)[:1] == field), key=_how_telling)
    place = [str(part) for part in _place(told)]
    if told.get("type") == "json_invalid":
        return invalid(f"the body is not JSON: {told.get('ctx', {}).get('error', 'malformed')} at byte {place[-1]}")
    if not place:
        return invalid(f"the body must be a JSON object, sent with Content-Type: application/json ({told.get('msg')})")
    return invalid(f"{'.'.join(place)}: {told.get('msg')}", param=place[0])


def _place(error: Mapping[str, Any]) -> list[str | int]:
    return [part for part in error.get("loc", ()) if part != "body"]


def _how_telling(error: Mapping[str, Any]) -> tuple[list[int], bool]:
    """A field that may be a text or a list has a complaint for each: that which got further into the value was meant."""
    indices = [part for part in _place(error) if isinstance(part, int)]
    return indices, not str(error.get("type")).endswith("_type")


def _field_named_in(message: str) -> str | None:
    """The engine says "top_p is 3; it must be ...", or "logit_bias names token 9, which ..."."""
    match = re.match(r"([a-z_]+) (?:is|names) ", message)
    return match.group(1) if match else None
