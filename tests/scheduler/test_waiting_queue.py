from infra_lab.sampling_params import SamplingParams
from infra_lab.scheduler.request import Request
from infra_lab.scheduler.waiting_queue import WaitingQueue


def request(number: int, priority: int = 0) -> Request:
    made = Request(token_ids=[0], request_id=str(number), params=SamplingParams(), priority=priority)
    made.sequence_number = number
    return made


def taken(queue: WaitingQueue) -> list[str]:
    """Take out the head until nobody is left."""
    order = []
    while (head := queue.peek()) is not None:
        queue.discard(head)
        order.append(head.request_id)
    return order


def test_the_most_urgent_comes_first() -> None:
    queue = WaitingQueue()
    requests = [request(0, priority=1), request(1), request(2, priority=1), request(3)]
    for waiting in requests:
        queue.push(waiting)
    assert [head.request_id for head in queue.first(3)] == ["1", "3", "0"]
    assert taken(queue) == ["1", "3", "0", "2"]
    assert len(queue) == 0
    assert queue.first(3) == []


def test_those_who_leave_are_never_seen() -> None:
    queue, requests = WaitingQueue(), [request(number) for number in range(6)]
    for waiting in requests:
        queue.push(waiting)
    for number in (0, 1, 3):
        queue.discard(requests[number])
        queue.discard(requests[number])  # whoever is not there, cannot leave
    assert len(queue) == 3
    assert queue.peek() is requests[2]
    assert queue.first(9) == [requests[2], requests[4], requests[5]]
    assert taken(queue) == ["2", "4", "5"]


def test_one_who_comes_back_stands_there_once() -> None:
    queue, requests = WaitingQueue(), [request(number) for number in range(3)]
    for waiting in requests:
        queue.push(waiting)
    queue.discard(requests[1])  # from the middle: its entry is still in the heap
    queue.push(requests[1])
    assert queue.first(9) == requests
    assert taken(queue) == ["0", "1", "2"]


def test_those_who_leave_from_behind_an_endless_stream_do_not_pile_up() -> None:
    """They once stayed in the heap, prompts and all, until they came to its top."""
    queue = WaitingQueue()
    queue.push(request(0))
    for number in range(1, 1000):
        queue.push(impatient := request(number, priority=1))
        queue.discard(impatient)
    assert len(queue) == 1
    assert len(queue._heap) <= 3
