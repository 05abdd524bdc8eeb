"""Text completions as OpenAI's API writes them, whole and in a stream."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from json.encoder import encode_basestring
from typing import Any

from infra_lab.models.tokenizer import Tokenizer
from infra_lab.server.api_error import ApiError
from infra_lab.server.generation import Generation
from infra_lab.server.logprobs import completion_logprobs
from infra_lab.server.mailbox import Piece
from infra_lab.server.sse import DONE
from infra_lab.server.text_offsets import TextOffsets


@dataclass(slots=True, kw_only=True)
class CompletionFormat:
    """Writes the responses to one completion request."""

    response_id: str
    model: str
    tokenizer: Tokenizer
    num_top_logprobs: int | None
    """None: no log-probabilities."""
    skip_special_tokens: bool
    with_token_ids: bool
    with_usage: bool
    """End a stream with the token counts."""
    echoes: list[str]
    """What each choice's text begins with: its prompt, or nothing (and nothing where there are log-probabilities)."""
    created: int = field(default_factory=lambda: int(time.time()))
    _prefixes: dict[int, str] = field(default_factory=dict)
    _begun: set[int] = field(default_factory=set)
    """Choices that have had their echo."""
    _offsets: dict[int, TextOffsets] = field(default_factory=dict)

    def response(self, generation: Generation, pieces: Sequence[Piece]) -> dict[str, Any]:
        """The response object, from one piece a choice."""
        return {**self._head(), "choices": [self._choice(piece) for piece in pieces], "usage": generation.usage()}

    def pieces(self, pieces: Sequence[Piece]) -> bytes:
        """The events of what is new."""
        return "".join(self._event(piece) for piece in pieces).encode()

    def end(self, generation: Generation) -> bytes:
        """The token counts, if asked for, and the last event."""
        if not self.with_usage:
            return DONE
        return _event({**self._head(), "choices": [], "usage": generation.usage()}).encode() + DONE

    def error(self, error: ApiError) -> bytes:
        """An error object, which OpenAI's clients raise, and the last event."""
        return error.event() + DONE

    def _event(self, piece: Piece) -> str:
        prefix = self._prefixes.get(piece.index)
        is_plain = piece.finish_reason is None and not piece.logprobs and not self.with_token_ids
        if prefix is None or not is_plain:
            choice = self._choice(piece)
            whole = {**self._head(), "choices": [choice], **({"usage": None} if self.with_usage else {})}
            if prefix is None:
                marker = _event({**self._head(), "choices": [{"index": piece.index, "text": "\0"}]})
                self._prefixes[piece.index] = marker[: marker.index('"\\u0000"')]
            return _event(whole) if choice["text"] or not is_plain else ""
        if not piece.text:
            return ""
        usage = ', "usage": null' if self.with_usage else ""
        return f'{prefix}{encode_basestring(piece.text)}, "logprobs": null, "finish_reason": null}}]{usage}}}\n\n'

    def _choice(self, piece: Piece) -> dict[str, Any]:
        echo = "" if piece.index in self._begun else self.echoes[piece.index]
        self._begun.add(piece.index)
        choice: dict[str, Any] = {
            "index": piece.index,
            "text": echo + piece.text,
            "logprobs": None,
            "finish_reason": piece.finish_reason,
            "stop_reason": piece.stop_reason,
        }
        if self.num_top_logprobs is not None and piece.logprobs:
            offsets = self._offsets.get(piece.index)
            if offsets is None:
                offsets = TextOffsets(self.tokenizer, skip_special_tokens=self.skip_special_tokens)
                self._offsets[piece.index] = offsets
            choice["logprobs"] = completion_logprobs(self.tokenizer, piece.logprobs, self.num_top_logprobs, offsets)
        if self.with_token_ids:
            choice["token_ids"] = piece.token_ids
        return choice

    def _head(self) -> dict[str, Any]:
        return {
            "id": self.response_id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": None,
        }


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"
