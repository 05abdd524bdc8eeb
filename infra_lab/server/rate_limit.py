"""Token buckets: so much a minute on average, as much at once as a minute brings."""

from dataclasses import dataclass, field

from infra_lab.clock import Clock
from infra_lab.server.api_error import ApiError, too_many
from infra_lab.server.config import ServerConfig
from infra_lab.server.keys import ApiKey


class TokenBucket:
    """Fills at a steady rate up to its capacity. It may be overdrawn: the debt is waited for by whoever comes next."""

    def __init__(self, per_minute: float, clock: Clock) -> None:
        self.capacity = per_minute
        self._level = per_minute
        self._per_s = per_minute / 60
        self._clock = clock
        self._filled_s = clock.now()

    def wait_s(self, amount: float) -> float:
        """Seconds until `amount` can be taken; 0: now. A full bucket lets through even more than it holds."""
        now = self._clock.now()
        self._level = min(self.capacity, self._level + (now - self._filled_s) * self._per_s)
        self._filled_s = now
        return max(0.0, (min(amount, self.capacity) - self._level) / self._per_s)

    def take(self, amount: float) -> None:
        """Take out what was used, also what is not there."""
        self._level -= amount


@dataclass(slots=True)
class Allowance:
    """What one key has left."""

    requests: TokenBucket | None
    tokens: TokenBucket | None


@dataclass(slots=True)
class RateLimiter:
    """One allowance a key.

    The length of an output is not known beforehand, and to set aside the longest possible would refuse nearly everything.
    So a request is let in if its prompt fits; its output is charged when it ends, on credit.
    """

    config: ServerConfig
    clock: Clock
    _allowances: dict[str | None, Allowance] = field(default_factory=dict)

    def admit(self, key: ApiKey | None, num_prompt_tokens: int) -> None:
        """Charge a request and its prompt. Raises ApiError (429, with Retry-After) and charges nothing if there is no room."""
        allowance = self._of(key)
        for bucket, amount, what in (
            (allowance.requests, 1, "requests"),
            (allowance.tokens, num_prompt_tokens, "tokens"),
        ):
            if bucket is not None and (wait_s := bucket.wait_s(amount)) > 0:
                raise _limited(what, bucket.capacity, wait_s)
        if allowance.requests is not None:
            allowance.requests.take(1)
        self.charge(key, num_prompt_tokens)

    def charge(self, key: ApiKey | None, num_tokens: int) -> None:
        """Charge tokens that were used."""
        bucket = self._of(key).tokens
        if bucket is not None:
            bucket.take(num_tokens)

    def _of(self, key: ApiKey | None) -> Allowance:
        name = key.name if key else None
        if name not in self._allowances:
            requests = (key and key.requests_per_minute) or self.config.requests_per_minute
            tokens = (key and key.tokens_per_minute) or self.config.tokens_per_minute
            self._allowances[name] = Allowance(
                TokenBucket(requests, self.clock) if requests else None,
                TokenBucket(tokens, self.clock) if tokens else None,
            )
        return self._allowances[name]


def _limited(what: str, per_minute: float, wait_s: float) -> ApiError:
    return too_many(
        f"the limit of {per_minute:g} {what} a minute is reached; try again in {wait_s:.0f} s", -int(-wait_s // 1)
    )
