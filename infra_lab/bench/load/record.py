"""What became of one request.

    scheduled ── launched ── sent ───────── first token ─┬─┬─┬─ last token ── ended
        │  generator's │  waiting for          │       ITLs
        │  own lag     │  a connection         │
        └───────────────── TTFT ───────────────┘

Latencies count from the moment the request was due, not from when it got out: a client that waits while the server is
slow, and starts its watch afterwards, leaves out just the requests that suffered ("coordinated omission", Gil Tene).
"""

from dataclasses import dataclass, field
from itertools import pairwise


@dataclass(slots=True)
class RequestRecord:
    """Times in seconds from the start of the run; None for what has not happened."""

    index: int
    scheduled_s: float
    planned_prompt_tokens: int
    planned_output_tokens: int
    launched_s: float | None = None
    """When the generator got to it."""
    sent_s: float | None = None
    """When it had a place among the connections."""
    token_times_s: list[float] = field(default_factory=list)
    """When pieces of text came; a piece is a token, or several that the server put together."""
    ended_s: float | None = None
    prompt_tokens: int | None = None
    """As the server counts; None if it does not say."""
    cached_tokens: int = 0
    """Prompt tokens that the server says it had in its prefix cache."""
    counted_output_tokens: int | None = None
    finish_reason: str | None = None
    error: str | None = None
    """Its kind, such as "HTTP 429" or "timeout"."""
    error_detail: str = ""

    @property
    def is_ok(self) -> bool:
        """Whether it was answered to the end."""
        return self.ended_s is not None and self.error is None

    @property
    def output_tokens(self) -> int:
        """As the server counts, or else the pieces that came."""
        return len(self.token_times_s) if self.counted_output_tokens is None else self.counted_output_tokens

    @property
    def launch_lag_s(self) -> float | None:
        """How late the generator itself was."""
        return None if self.launched_s is None else self.launched_s - self.scheduled_s

    @property
    def queued_s(self) -> float | None:
        """How long it waited for a place among the connections, which it may never have got."""
        left_s = self.ended_s if self.sent_s is None else self.sent_s
        return None if self.launched_s is None or left_s is None else left_s - self.launched_s

    @property
    def ttft_s(self) -> float | None:
        """Time to first token."""
        return self.token_times_s[0] - self.scheduled_s if self.token_times_s else None

    @property
    def e2e_s(self) -> float | None:
        """Until the last token."""
        return self.token_times_s[-1] - self.scheduled_s if self.token_times_s else None

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first; None for fewer than two tokens."""
        if not self.token_times_s or self.output_tokens < 2:
            return None
        return (self.token_times_s[-1] - self.token_times_s[0]) / (self.output_tokens - 1)

    @property
    def itl_s(self) -> list[float]:
        """Gaps between pieces of text; of tokens, where the server sends each by itself."""
        return [after - before for before, after in pairwise(self.token_times_s)]
