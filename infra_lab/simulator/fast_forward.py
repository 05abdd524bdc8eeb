"""Decode steps without plans: while nobody comes, ends or waits for a block, the scheduler would plan the same step again.

The clock, the blocks and the prefix cache go through the same changes in the same order as if it had:

    step k       blocks for those whose last one is full ─▶ clock += cost of the shape ─▶ blocks that are full now: committed
    at the end   tokens, their times, and how far each one is computed

So the result is that of the step-by-step replay to the last bit; a property test holds that. It cannot be done, and the
scheduler is asked at each step, where someone waits who might find room (memory is short, or a batch is to be filled), and
where costs need more than a step's sums.
"""

from typing import cast

from infra_lab.scheduler.scheduler import Scheduler
from infra_lab.simulator.replayed_request import ReplayedRequest


def decodes_ahead(scheduler: Scheduler) -> int:
    """Return how many steps from now on are sure to be one token each for all that run; 0 where the scheduler must be asked.

    Needs nothing but that no request is added. All end short of the step in which a request ends.
    """
    config, running, urgent = scheduler.config, scheduler.running, scheduler.waiting.peek()
    if not running or config.num_speculative_tokens:
        return 0
    if urgent and (len(running) < config.max_num_seqs or scheduler.policy.outranks(urgent, running[-1])):
        return 0
    blocks = scheduler.blocks
    # In n steps a request takes n / block_size + 1 blocks at the most.
    num_steps = blocks.num_free_blocks // len(running) * blocks.block_size - 1
    for request in running:
        length = len(request.token_ids)
        left = request.max_total_tokens - length - 1
        if left < num_steps:
            num_steps = left
        if num_steps < 1 or length - request.num_computed != 1:
            return 0
    return num_steps


class DecodeRun:
    """Everybody who runs, one token a step. Steps come in stretches in which no block is filled; `close` after the last.

    A stretch is `begin_stretch`, up to `stretch` steps, and `end_stretch`.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._blocks = scheduler.blocks
        self._running = cast("list[ReplayedRequest]", scheduler.running)
        self.num_requests = len(self._running)
        self.num_steps = 0
        """Steps that are over."""
        self.context = self.num_requests
        """Keys that the next step reads."""
        at_border: dict[int, list[ReplayedRequest]] = {}
        block_size = self._blocks.block_size
        for request in self._running:
            self.context += request.num_computed
            at_border.setdefault(-request.num_computed % block_size, []).append(request)
        self._borders = sorted(at_border.items())
        """Who has a full last block after so many steps, and so again a block later; each in the order of running."""
        self._next = 0
        """Which border comes next, and in which round of them."""
        self._round = 0

    @property
    def _next_border(self) -> int:
        return self._borders[self._next][0] + self._round * self._blocks.block_size

    def begin_stretch(self, limit: int) -> int:
        """Give blocks to those whose next token does not fit; return the steps until the next border, `limit` at the most."""
        if self._next_border == self.num_steps:
            for request in self._borders[self._next][1]:
                start = request.num_computed + self.num_steps
                if start == request.capacity:
                    self._blocks.grow(request, start + 1, start)
            self._next = (self._next + 1) % len(self._borders)
            self._round += self._next == 0
        return min(self._next_border - self.num_steps, limit)

    def end_stretch(self, num_steps: int) -> None:
        """Go on by so many steps, and register the blocks that are full then."""
        self.num_steps += num_steps
        self.context += num_steps * self.num_requests
        if self._next_border == self.num_steps:
            for request in self._borders[self._next][1]:
                num_computed = request.num_computed + self.num_steps
                request.answer_up_to(num_computed)
                self._blocks.commit(request, num_computed)

    def close(self, token_times_s: list[float]) -> None:
        """Bring the requests to where they are after these steps, the times of whose ends are given."""
        for request in self._running:
            request.num_computed += self.num_steps
            request.answer_up_to(request.num_computed + 1)
            request.token_times_s.extend(token_times_s)
