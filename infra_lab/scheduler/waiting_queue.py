"""Requests that wait, the most urgent first."""

import heapq

from infra_lab.scheduler.request import Request


class WaitingQueue:
    """A heap ordered by `Request.urgency`. One that was taken out of its middle stays, unseen, until it is swept out."""

    def __init__(self) -> None:
        self._heap: list[tuple[tuple[int, float, int], Request]] = []
        self._members: set[Request] = set()

    def __len__(self) -> int:
        return len(self._members)

    def push(self, request: Request) -> None:
        """Add a request; one that was preempted finds its old place by its arrival time."""
        heapq.heappush(self._heap, (request.urgency, request))
        self._members.add(request)

    def peek(self) -> Request | None:
        """Return the most urgent request, or None if nobody waits."""
        while self._heap and self._heap[0][1] not in self._members:
            heapq.heappop(self._heap)
        return self._heap[0][1] if self._heap else None

    def pop(self) -> Request:
        """Take the most urgent request out. Call only after `peek` returned one."""
        request = heapq.heappop(self._heap)[1]
        self._members.remove(request)
        return request

    def discard(self, request: Request) -> None:
        """Take a request out, wherever it stands; nothing happens if it is not here (a fork that was not born yet).

        It must not come back. Amortized O(log n): the heap is swept when more than half of it are such requests, so
        that callers who lose patience behind an endless stream of more urgent ones do not fill the memory.
        """
        self._members.discard(request)
        if len(self._heap) > 2 * len(self._members):
            self._heap = [entry for entry in self._heap if entry[1] in self._members]
            heapq.heapify(self._heap)
