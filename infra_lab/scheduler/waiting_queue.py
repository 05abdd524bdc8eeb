"""Requests that wait, the most urgent first."""

import heapq
from itertools import count

from infra_lab.scheduler.request import Request


class WaitingQueue:
    """A heap ordered by `Request.urgency`. One that was taken out of its middle leaves an entry that nobody sees."""

    def __init__(self) -> None:
        self._heap: list[tuple[tuple[int, float, int], int, Request]] = []
        self._members: dict[Request, int] = {}
        """The number of each one's own entry: one that comes back has another."""
        self._entries = count()

    def __len__(self) -> int:
        return len(self._members)

    def push(self, request: Request) -> None:
        """Add a request; one that was preempted finds its old place by its arrival time."""
        self._members[request] = entry = next(self._entries)
        heapq.heappush(self._heap, (request.urgency, entry, request))

    def peek(self) -> Request | None:
        """Return the most urgent request, or None if nobody waits."""
        while self._heap and not self._is_live(self._heap[0]):
            heapq.heappop(self._heap)
        return self._heap[0][2] if self._heap else None

    def first(self, number: int) -> list[Request]:
        """Return the most urgent ones, the first first; O(waiting · log number)."""
        return [request for _, _, request in heapq.nsmallest(number, filter(self._is_live, self._heap))]

    def discard(self, request: Request) -> None:
        """Take a request out, wherever it stands; nothing happens if it is not here (a fork that was not born yet).

        Amortized O(log n): the heap is swept when more than half of it are such entries, so that callers who lose patience
        behind an endless stream of more urgent ones do not fill the memory.
        """
        self._members.pop(request, None)
        if self.peek() and len(self._heap) > 2 * len(self._members):
            self._heap = [entry for entry in self._heap if self._is_live(entry)]
            heapq.heapify(self._heap)

    def _is_live(self, entry: tuple[tuple[int, float, int], int, Request]) -> bool:
        return self._members.get(entry[2]) == entry[1]
