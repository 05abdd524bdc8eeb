"""Chat completions as OpenAI's API writes them, whole and in a stream.

Most events of a stream differ in their text only, so an event is a prefix made once a choice, the text as JSON, and a suffix.
"""

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from json.encoder import encode_basestring  # what json.dumps writes for a string, non-ASCII characters as they are
from typing import Any

from infra_lab.models.tokenizer import Tokenizer
from infra_lab.server.api_error import ApiError
from infra_lab.server.generation import Generation
from infra_lab.server.logprobs import chat_logprobs
from infra_lab.server.mailbox import Piece
from infra_lab.server.sse import DONE
from infra_lab.server.tool_calls import Arguments, CallStart, Text, ToolCallParser, ToolEvent


@dataclass(slots=True, kw_only=True)
class ChatFormat:
    """Writes the responses to one chat request."""

    response_id: str
    model: str
    tokenizer: Tokenizer
    num_top_logprobs: int | None
    """None: no log-probabilities."""
    with_token_ids: bool
    with_tools: bool
    is_forced_call: bool
    """The whole output is one call, without tags."""
    with_parallel_calls: bool
    """Whether an answer may have more than one call."""
    with_usage: bool
    """End a stream with the token counts."""
    created: int = field(default_factory=lambda: int(time.time()))
    _parsers: dict[int, ToolCallParser] = field(default_factory=dict)
    _prefixes: dict[int, str] = field(default_factory=dict)
    """Of the choices that have had their first event."""

    # ---- whole ----

    def response(self, generation: Generation, pieces: Sequence[Piece]) -> dict[str, Any]:
        """The response object, from one piece a choice."""
        return {
            "id": self.response_id,
            "object": "chat.completion",
            "created": self.created,
            "model": self.model,
            "choices": [self._choice(piece) for piece in pieces],
            "usage": generation.usage(),
            "service_tier": None,
            "system_fingerprint": None,
        }

    def _choice(self, piece: Piece) -> dict[str, Any]:
        content, calls = "", list[dict[str, Any]]()
        for event in self._split(piece):
            match event:
                case Text(text):
                    content += text
                case CallStart(_, name):
                    calls.append(_call(name))
                case Arguments(index, text):
                    calls[index]["function"]["arguments"] += text
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if calls:
            message |= {"content": content or None, "tool_calls": calls}
        return {"index": piece.index, "message": message, **self._details(piece), **self._ending(piece)}

    # ---- in a stream ----

    def pieces(self, pieces: Sequence[Piece]) -> bytes:
        """The events of what is new."""
        return "".join(event for piece in pieces for event in self._events(piece)).encode()

    def end(self, generation: Generation) -> bytes:
        """The token counts, if asked for, and the last event."""
        if not self.with_usage:
            return DONE
        return self._chunk([], usage=generation.usage()).encode() + DONE

    def error(self, error: ApiError) -> bytes:
        """An error object, which OpenAI's clients raise, and the last event."""
        return error.event() + DONE

    def _events(self, piece: Piece) -> list[str]:
        events = []
        if piece.index not in self._prefixes:
            events.append(self._delta(piece.index, {"role": "assistant", "content": ""}))
            marker = self._delta(piece.index, {"content": "\0"})
            self._prefixes[piece.index] = marker[: marker.index('"\\u0000"')]
        details = self._details(piece)
        is_plain = details == _NO_DETAILS and not self.with_tools
        if is_plain and piece.text:
            events.append(self._prefixes[piece.index] + encode_basestring(piece.text) + self._suffix())
        elif not is_plain:
            deltas = [_as_delta(event) for event in self._split(piece)]
            if not deltas and details != _NO_DETAILS:
                deltas.append({"content": ""})
            for delta in deltas:
                events.append(self._delta(piece.index, delta, details))
                details = _NO_DETAILS
        if piece.finish_reason is not None:
            events.append(self._delta(piece.index, {}, self._ending(piece)))
        return events

    def _delta(self, index: int, delta: dict[str, Any], more: dict[str, Any] | None = None) -> str:
        return self._chunk([{"index": index, "delta": delta, "logprobs": None, "finish_reason": None, **(more or {})}])

    def _chunk(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None = None) -> str:
        chunk: dict[str, Any] = {
            "id": self.response_id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }
        if self.with_usage:
            chunk["usage"] = usage
        return f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"

    def _suffix(self) -> str:
        usage = ', "usage": null' if self.with_usage else ""
        return f'}}, "logprobs": null, "finish_reason": null}}]{usage}}}\n\n'

    # ---- both ----

    def _split(self, piece: Piece) -> list[ToolEvent]:
        """The piece's text as content and tool calls."""
        if not self.with_tools:
            return [Text(piece.text)] if piece.text else []
        parser = self._parsers.setdefault(piece.index, ToolCallParser(in_call=self.is_forced_call))
        events = parser.push(piece.text)
        if piece.finish_reason is not None:
            events += parser.finish()
        if self.with_parallel_calls:
            return events
        # OpenAI's models write one call then; others go on, and vLLM drops their further calls and keeps the text: so do we.
        return [event for event in events if isinstance(event, Text) or event.call == 0]

    def _details(self, piece: Piece) -> dict[str, Any]:
        details: dict[str, Any] = {"logprobs": None}
        if self.num_top_logprobs is not None and piece.logprobs:
            details["logprobs"] = chat_logprobs(self.tokenizer, piece.logprobs, self.num_top_logprobs)
        if self.with_token_ids:
            details["token_ids"] = piece.token_ids
        return details

    def _ending(self, piece: Piece) -> dict[str, Any]:
        parser = self._parsers.get(piece.index)
        called = parser is not None and parser.num_calls > 0 and piece.finish_reason == "stop"
        return {"finish_reason": "tool_calls" if called else piece.finish_reason, "stop_reason": piece.stop_reason}


_NO_DETAILS: dict[str, Any] = {"logprobs": None}


def _call(name: str) -> dict[str, Any]:
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": {"name": name, "arguments": ""}}


def _as_delta(event: ToolEvent) -> dict[str, Any]:
    match event:
        case Text(text):
            return {"content": text}
        case CallStart(index, name):
            return {"tool_calls": [{"index": index, **_call(name)}]}
        case Arguments(index, text):
            return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}
