"""How many sequences may be in the house at once: those that run and a bounded number that wait."""

from infra_lab.server.api_error import invalid, too_many

MAX_RETRY_AFTER_S = 60
_SMOOTHING = 0.1


class Admission:
    """Counts sequences (each of the `n` samples of each prompt is one) from acceptance to their end.

    An unbounded queue turns overload into timeouts for everyone; a bounded one tells some to come back, and when.
    """

    def __init__(self, max_running: int, max_waiting: int) -> None:
        self.limit = max_running + max_waiting
        self._max_running = max_running
        self.in_flight = 0
        self._service_s = 1.0
        """How long a request takes, smoothed over the latest ones."""

    def check(self, num_sequences: int) -> None:
        """Raise ApiError (400) for a request that there will never be room for."""
        if num_sequences > self.limit:
            raise invalid(
                f"the request asks for {num_sequences} sequences (prompts × n); this server takes {self.limit} at once"
            )

    def enter(self, num_sequences: int) -> None:
        """Count a request in. Raises ApiError, with nothing counted: 429 if there is no room now, 400 if there never is."""
        self.check(num_sequences)
        if self.in_flight + num_sequences > self.limit:
            wait_s = self.retry_after_s()
            raise too_many(
                f"{self.in_flight} sequences run or wait, and the limit is {self.limit}; try again in {wait_s} s",
                wait_s,
                "queue_full",
            )
        self.in_flight += num_sequences

    def leave(self, num_sequences: int, service_s: float | None) -> None:
        """Count a request out that took `service_s` seconds; None: it was not served, and says nothing about the next one."""
        self.in_flight -= num_sequences
        if service_s is not None:
            self._service_s += _SMOOTHING * (service_s - self._service_s)

    def retry_after_s(self) -> int:
        """When a place should be free: one gets free every (time of a request / requests side by side)."""
        excess = max(1, self.in_flight - self.limit + 1)
        return min(MAX_RETRY_AFTER_S, max(1, round(self._service_s * excess / self._max_running)))
