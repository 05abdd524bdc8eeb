"""What the engine has made and the client has not got yet.

      a delta a step ──put──▶ │ choice 0: "the qu" + "ick"  │ ──take──▶ one piece a choice
                              │ choice 1: "a"               │           once it is big or old enough

However slowly a client reads, there is one piece a choice: what comes meanwhile is merged into it. Its size is bounded.
"""

from dataclasses import dataclass, field

from infra_lab.engine.outputs import OutputDelta
from infra_lab.scheduler.plan import TokenLogprobs

_TOKEN_BYTES = 8
_LOGPROB_BYTES = 60
"""What a token, and each of its alternatives, adds to an event; roughly is enough for a limit."""


@dataclass(frozen=True, slots=True)
class Chunking:
    """When a piece is worth an event: at so many tokens, or at such an age, whichever comes first."""

    tokens: int | None = 1
    max_age_s: float | None = None


@dataclass(slots=True)
class Piece:
    """What one or several steps added to one choice."""

    index: int
    parts: list[str] = field(default_factory=list)
    """The text, as it came."""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    since_s: float = 0.0
    """When the oldest token in it came."""
    is_full: bool = False
    """Whether it goes out whatever its age."""

    @property
    def text(self) -> str:
        """New text; may be empty while a character is incomplete."""
        return "".join(self.parts)

    def add(self, delta: OutputDelta) -> int:
        """Merge a delta; return the bytes that this adds, roughly."""
        self.parts.append(delta.text)
        self.token_ids += delta.token_ids
        self.logprobs += delta.logprobs
        self.finish_reason, self.stop_reason = delta.finish_reason, delta.stop_reason
        size = len(delta.text) + _TOKEN_BYTES * len(delta.token_ids)
        return size + sum(_LOGPROB_BYTES * (1 + len(logprobs.top)) for logprobs in delta.logprobs)


class Mailbox:
    """Pieces by choice. Times are given by the caller; nothing here waits."""

    def __init__(self, chunking: Chunking) -> None:
        self._chunking = chunking
        self._pieces: dict[int, Piece] = {}
        self.num_bytes = 0
        """Size of all that waits, roughly."""

    def put(self, index: int, delta: OutputDelta, now_s: float) -> bool:
        """Merge what a step added to a choice; return whether who waits should look: a piece is ready, or has a due time."""
        piece, chunking = self._pieces.get(index), self._chunking
        is_new = piece is None
        if piece is None:
            piece = self._pieces[index] = Piece(index, [], [], [], since_s=now_s)
        self.num_bytes += piece.add(delta)
        enough = chunking.tokens is not None and len(piece.token_ids) >= chunking.tokens
        piece.is_full = enough or delta.finish_reason is not None
        return piece.is_full or (is_new and chunking.max_age_s is not None)

    def has_ready(self, now_s: float) -> bool:
        """Whether `take` would return anything."""
        for piece in self._pieces.values():  # noqa: SIM110 - a generator costs as much as all the rest
            if piece.is_full or self._is_old(piece, now_s):
                return True
        return False

    def take(self, now_s: float, *, everything: bool = False) -> list[Piece]:
        """Take out the pieces that are ready, or all of them."""
        pieces = self._pieces
        ready = [piece for piece in pieces.values() if everything or piece.is_full or self._is_old(piece, now_s)]
        if len(ready) == len(pieces):
            pieces.clear()
            self.num_bytes = 0
        else:
            for piece in ready:
                del pieces[piece.index]
        return ready

    def due_s(self) -> float | None:
        """When the oldest piece becomes ready by its age; None if there is none, or age does not count."""
        if self._chunking.max_age_s is None or not self._pieces:
            return None
        return min(piece.since_s for piece in self._pieces.values()) + self._chunking.max_age_s

    def _is_old(self, piece: Piece, now_s: float) -> bool:
        max_age_s = self._chunking.max_age_s
        return max_age_s is not None and now_s >= piece.since_s + max_age_s
