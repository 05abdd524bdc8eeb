"""Requests that wait, the most urgent first."""

import heapq

from infra_lab.scheduler.request import Request, Status


class WaitingQueue:
    """A heap ordered by `Request.urgency`. An aborted request stays in it, unseen, until it comes to the top."""

    def __init__(self) -> None:
        self._heap: list[tuple[tuple[int, float, int], Request]] = []
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def push(self, request: Request) -> None:
        """Add a request; one that was preempted finds its old place by its arrival time."""
        heapq.heappush(self._heap, (request.urgency, request))
        self._size += 1

    def peek(self) -> Request | None:
        """Return the most urgent request, or None if nobody waits."""
        while self._heap and self._heap[0][1].status is not Status.WAITING:
            heapq.heappop(self._heap)
        return self._heap[0][1] if self._heap else None

    def pop(self) -> Request:
        """Take the most urgent request out. Call only after `peek` returned one."""
        self._size -= 1
        return heapq.heappop(self._heap)[1]

    def discard(self) -> None:
        """Count one request less: one that waits is about to be marked finished, and will be passed over."""
        self._size -= 1
