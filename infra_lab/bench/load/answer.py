"""Reads one answer's stream: which events bring text, which bring counts, and which say that something went wrong."""

import json
from typing import Any

from infra_lab.bench.load.record import RequestRecord

_TEXT_FIELDS = ("content", "reasoning_content", "reasoning", "refusal")


class AnswerError(Exception):
    """Why an answer is none; `kind` is what errors are counted by."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


class AnswerReader:
    """Writes what the events of one stream say into its record. Not to be used again after `end`."""

    def __init__(self, record: RequestRecord) -> None:
        self._record = record
        self._is_done = False

    def take(self, data: str, now_s: float) -> None:
        """Read an event's data that came at `now_s`. Raises AnswerError for an error event, or one that is not JSON."""
        if data == "[DONE]":
            self._is_done = True
            return
        try:
            content = json.loads(data)
        except ValueError as error:
            raise AnswerError("malformed event", f"{error}: {data[:200]!r}") from error
        if not isinstance(content, dict) or content.get("error"):
            raise AnswerError("error event", data[:300])
        for choice in content.get("choices") or ():
            if _has_text(choice):
                self._record.token_times_s.append(now_s)
            self._record.finish_reason = choice.get("finish_reason") or self._record.finish_reason
        usage = content.get("usage")
        if usage:
            self._count(usage)

    def end(self, now_s: float) -> None:
        """The stream is over. Raises AnswerError if the answer is not: a cut connection may look like an end."""
        record = self._record
        if not self._is_done and record.finish_reason is None:
            raise AnswerError("incomplete", f"the stream ended after {len(record.token_times_s)} pieces of text")
        if not record.token_times_s:  # all its tokens were invisible
            record.token_times_s.append(now_s)
        record.ended_s = now_s

    def _count(self, usage: dict[str, Any]) -> None:
        record = self._record
        record.prompt_tokens = usage.get("prompt_tokens", record.prompt_tokens)
        record.counted_output_tokens = usage.get("completion_tokens", record.counted_output_tokens)
        details = usage.get("prompt_tokens_details") or {}
        record.cached_tokens = details.get("cached_tokens") or 0


def _has_text(choice: dict[str, Any]) -> bool:
    """Whether a choice brings anything to read; a role, a finish reason and an empty string are not that."""
    delta = choice.get("delta") or {}
    return bool(choice.get("text") or delta.get("tool_calls") or any(delta.get(name) for name in _TEXT_FIELDS))
