"""Finds tool calls in what a model writes, in the form of Hermes and Qwen, while it is being written:

    I'll look it up.
    <tool_call>
    {"name": "get_weather", "arguments": {"city": "Paris"}}
    </tool_call>

    TEXT ──"<tool_call>"──▶ HEAD ──name and "{"──▶ ARGUMENTS ──matching "}"──▶ TAIL ──"</tool_call>"──▶ TEXT
                              └──"</tool_call>": the whole call at once, or, if it is no JSON, text as it was──▶ TEXT

Arguments are passed on as the model writes them. However the text is cut into pieces, the result is the same.
"""

import json
import re
from enum import Enum
from typing import NamedTuple

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')


class Text(NamedTuple):
    """Ordinary content."""

    text: str


class CallStart(NamedTuple):
    """A call to this function begins."""

    call: int
    """Which one, from 0."""
    name: str


class Arguments(NamedTuple):
    """More of a call's arguments, which together are JSON if the model wrote JSON."""

    call: int
    """Which one, from 0."""
    text: str


ToolEvent = Text | CallStart | Arguments


class _State(Enum):
    TEXT = "text"
    HEAD = "head"
    ARGUMENTS = "arguments"
    TAIL = "tail"


class ToolCallParser:
    """Splits one choice's text into content and calls. White space around calls is dropped.

    in_call: the prompt has ended with the opening tag already, and a grammar holds the output to one call.
    """

    def __init__(self, *, in_call: bool = False) -> None:
        self.num_calls = 0
        self._state = _State.HEAD if in_call else _State.TEXT
        self._held = ""
        self._depth, self._in_string, self._is_escaped = 0, False, False

    def push(self, text: str) -> list[ToolEvent]:
        """Take more text; return what is certain by now."""
        events: list[ToolEvent] = []
        self._held += text
        steps = {
            _State.TEXT: self._text,
            _State.HEAD: self._head,
            _State.ARGUMENTS: self._arguments,
            _State.TAIL: self._tail,
        }
        while steps[self._state](events):
            pass
        return events

    def finish(self) -> list[ToolEvent]:
        """The text is over: return what was held back, unless it is the white space or the rest of a call."""
        held, self._held = self._held, ""
        if self._state is _State.HEAD:
            return [Text(OPEN + held)]
        if self._state is _State.TEXT and held and not (self.num_calls and held.isspace()):
            return [Text(held)]
        return []

    # Each step consumes what it can of `_held` and returns whether another state has to go on with the rest.

    def _text(self, events: list[ToolEvent]) -> bool:
        start = self._held.find(OPEN)
        if start >= 0:
            _emit(events, self._held[:start].rstrip())
            self._held, self._state = self._held[start + len(OPEN) :], _State.HEAD
            return True
        certain = len(self._held) - _length_of_beginning(self._held, OPEN)
        certain = len(self._held[:certain].rstrip())
        _emit(events, self._held[:certain])
        self._held = self._held[certain:]
        return False

    def _head(self, events: list[ToolEvent]) -> bool:
        end = self._held.find(CLOSE)
        match = _HEAD.match(self._held, 0, end) if end >= 0 else _HEAD.match(self._held)
        if match is not None:
            self._start_call(json.loads(match.group(1), strict=False), events)
            self._held, self._state = self._held[match.end() :], _State.ARGUMENTS
            return True
        if end < 0:
            return False
        body, self._held, self._state = self._held[:end], self._held[end + len(CLOSE) :], _State.TEXT
        call = _whole_call(body)
        if call is None:
            _emit(events, OPEN + body + CLOSE)
        else:
            self._start_call(call[0], events)
            events.append(Arguments(self.num_calls - 1, call[1]))
        return True

    def _arguments(self, events: list[ToolEvent]) -> bool:
        for position, character in enumerate(self._held):
            if self._closes(character):
                events.append(Arguments(self.num_calls - 1, self._held[: position + 1]))
                self._held, self._state = self._held[position + 1 :], _State.TAIL
                return True
        if self._held:
            events.append(Arguments(self.num_calls - 1, self._held))
            self._held = ""
        return False

    def _tail(self, events: list[ToolEvent]) -> bool:
        end = self._held.find(CLOSE)
        if end < 0:
            return False
        self._held, self._state = self._held[end + len(CLOSE) :], _State.TEXT
        return True

    def _start_call(self, name: str, events: list[ToolEvent]) -> None:
        events.append(CallStart(self.num_calls, name))
        self.num_calls += 1
        self._depth, self._in_string, self._is_escaped = 0, False, False

    def _closes(self, character: str) -> bool:
        """Follow the arguments by one character; whether it closes their outermost brace."""
        if self._is_escaped:
            self._is_escaped = False
        elif self._in_string:
            self._is_escaped = character == "\\"
            self._in_string = character != '"'
        elif character == '"':
            self._in_string = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
            return self._depth == 0
        return False


def _emit(events: list[ToolEvent], text: str) -> None:
    if text:
        events.append(Text(text))


def _length_of_beginning(text: str, tag: str) -> int:
    """Length of the longest suffix of `text` that `tag` begins with."""
    return next((n for n in range(min(len(tag) - 1, len(text)), 0, -1) if text.endswith(tag[:n])), 0)


def _whole_call(body: str) -> tuple[str, str] | None:
    """Name and arguments of a call written in any other order; None if it is not a call."""
    try:
        call = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return None
    arguments = call.get("arguments", call.get("parameters"))
    return call["name"], arguments if isinstance(arguments, str) else json.dumps(arguments or {}, ensure_ascii=False)
