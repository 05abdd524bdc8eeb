"""Server-sent events from bytes, however the network has cut them (WHATWG HTML, section 9.2).

data: {"a":      a line ends with LF, CRLF or CR; a chunk may end anywhere, also between CR and LF
data: 1}         several data lines are one event, joined by LF
: ping           a comment: proxies and servers keep a connection alive with it
                 an empty line ends the event
"""

from dataclasses import dataclass

from infra_lab.errors import InfraLabError

MAX_LINE_BYTES = 16 << 20
"""A server that never ends a line would otherwise fill the memory."""


class SSEError(InfraLabError, ValueError):
    """A stream that cannot be read as events."""


@dataclass(frozen=True, slots=True)
class SSEEvent:
    """One event."""

    data: str
    event: str = "message"
    id: str = ""


class SSEParser:
    """Feed it bytes as they come. An event that the stream's end cuts off is not an event, so there is nothing to flush."""

    def __init__(self) -> None:
        self._partial: list[bytes] = []
        """The pieces of a line that has not ended yet."""
        self._partial_bytes = 0
        self._skip_lf = False
        """Whether the last chunk ended with CR, which an LF may follow."""
        self._is_first_line = True
        self._data: list[str] = []
        self._event = ""
        self._id = ""

    def feed(self, chunk: bytes) -> list[SSEEvent]:
        """Return the events that `chunk` completes. Raises SSEError for a line beyond `MAX_LINE_BYTES`."""
        if self._skip_lf and chunk:
            self._skip_lf = False
            chunk = chunk.removeprefix(b"\n")
        events = []
        for line in chunk.splitlines(keepends=True):
            self._partial.append(line)
            if line[-1:] not in b"\r\n":  # the chunk's last line goes on
                self._partial_bytes += len(line)
                if self._partial_bytes > MAX_LINE_BYTES:
                    raise SSEError(f"a line of the stream is longer than {MAX_LINE_BYTES} bytes; are these events?")
                break
            whole = b"".join(self._partial).rstrip(b"\r\n")
            self._partial.clear()
            self._partial_bytes = 0
            event = self._line(whole.decode(errors="replace"))
            if event is not None:
                events.append(event)
        self._skip_lf = self._skip_lf or chunk.endswith(b"\r")
        return events

    def _line(self, line: str) -> SSEEvent | None:
        if self._is_first_line:
            self._is_first_line = False
            line = line.removeprefix("\ufeff")
        if not line:
            return self._dispatch()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._event = value
        elif name == "id" and "\0" not in value:
            self._id = value
        return None  # a comment's name is empty; unknown fields are ignored

    def _dispatch(self) -> SSEEvent | None:
        data, event = self._data, self._event or "message"
        self._data, self._event = [], ""
        return SSEEvent("\n".join(data), event, self._id) if data else None
