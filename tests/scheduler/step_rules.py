"""What one call of `schedule` may decide, given what stood where before it.

Bounds, in calls of `schedule`, each derived from the rule before it:

    1. Who runs gets at least one token, or is preempted.                    No decode waits for somebody's prompt.
    2. The most urgent of all, once it runs, is never preempted.             It ends within max_model_len steps.
    3. Nobody overtakes the head of the queue.                               Those who run when a request gets there end
                                                                             or go within max_model_len steps; it is next.
    4. Of those of lower priority, at least one goes in every step in        It starts within max_num_seqs + 1 steps where
       which the head of the queue finds no room.                            only such run.

    5. A prompt of lower priority than the head of the queue gets no more
       than its one token.

So whoever is the most urgent of all ends within 2 · max_model_len + 1 steps, and somebody else is the most urgent.
"""

from typing import TYPE_CHECKING, NamedTuple

from infra_lab.scheduler.plan import StepPlan
from infra_lab.scheduler.request import Request

if TYPE_CHECKING:
    from tests.scheduler.world import SchedulerWorld


THESE_HOLD = ("chunked-prefill", "continuous", "sjf", "deadline")
"""The policies whose rules these are, with an order of their own."""


class Before(NamedTuple):
    running: list[Request]
    waiting: list[Request]
    first: Request | None
    num_computed: dict[Request, int]


class StepRules:
    def __init__(self, world: "SchedulerWorld") -> None:
        self.world = world
        self._first: Request | None = None
        self._steps_as_first = 0
        self._head: Request | None = None
        self._steps_as_urgent_head = 0

    def before_schedule(self) -> Before:
        world = self.world
        running, waiting = world.running, world.waiting
        first = min((*running, *waiting), key=world.urgency, default=None)
        return Before(running, waiting, first, {request: request.num_computed for request in running})

    def after_schedule(self, plan: StepPlan, before: Before) -> None:
        if self.world.scheduler.policy.name not in THESE_HOLD:
            self._count(plan, before)
            return
        planned = {chunk.request for chunk in plan.chunks}
        self._check_preempted(plan, before)
        for request in before.running:
            assert request in planned or request in plan.preempted, (
                f"{request.request_id} runs, and gets no token in step {plan.step}"
            )
        self._check_chunks(plan, before)
        self._check_admitted(plan, before)
        self._check_nobody_could_have_come_in(plan)
        assert bool(planned) == (before.first is not None), f"{len(planned)} planned of {len(self.world.live)}"
        self._check_the_first_moves_on(plan, before)
        self._check_urgent_head_comes_in(before)
        self._count(plan, before)

    def _check_preempted(self, plan: StepPlan, before: Before) -> None:
        """The least urgent go, in that order; to be the first is to stay, unless higher priority comes."""
        least_urgent = before.running[::-1][: len(plan.preempted)]
        assert plan.preempted == least_urgent, f"preempted {_ids(plan.preempted)}, not {_ids(least_urgent)}"
        assert before.first not in plan.preempted, "the most urgent request of all was preempted"
        if not plan.preempted:
            return
        survivor = before.running[: -len(plan.preempted)]
        head = before.waiting[:1]
        for victim in plan.preempted:
            for_whom = [r for r in (*survivor, *head) if r is not victim]
            assert any(self.world.urgency(r) < self.world.urgency(victim) for r in for_whom), "preempted for nobody"

    def _check_chunks(self, plan: StepPlan, before: Before) -> None:
        world, config = self.world, self.world.config
        for request, start, num_tokens in plan.chunks:
            is_outranked = any(other.priority < request.priority for other in before.waiting)
            assert not is_outranked or request in plan.admitted or num_tokens == 1, (
                f"{num_tokens} tokens of a low-priority prompt are computed while a higher priority waits"
            )
            if world.scheduler.policy.chunks_prompts:
                cap = config.max_prefill_chunk or config.max_batched_tokens
                assert num_tokens <= cap, f"{request.request_id} gets {num_tokens} tokens, over the cap of {cap}"
            else:
                assert start + num_tokens == len(request.token_ids), f"{request.request_id} was cut: {num_tokens}"

    def _check_admitted(self, plan: StepPlan, before: Before) -> None:
        """Seats go by urgency, and the watermark stays free for those who run."""
        world = self.world
        newly_running = [r for r in world.running if r not in before.running or r in plan.preempted]
        assert sorted(plan.admitted, key=world.urgency) == newly_running, f"admitted {_ids(plan.admitted)}"
        assert plan.admitted == newly_running, f"admitted out of order: {_ids(plan.admitted)}"
        for request in plan.admitted:
            for other in world.waiting:
                assert world.urgency(request) < world.urgency(other), f"{request.request_id} overtook"
            assert request.num_cached < len(request.token_ids), "nothing was left to compute"
        if plan.admitted and len(world.running) > 1:
            kept = int(world.config.watermark * world.blocks.num_blocks)
            assert world.blocks.num_free_blocks >= kept, f"{world.blocks.num_free_blocks} blocks free, not {kept}"

    def _check_nobody_could_have_come_in(self, plan: StepPlan) -> None:
        """Where somebody still waits, seats, budget or blocks are really short."""
        world, config = self.world, self.world.config
        left = config.max_batched_tokens - sum(chunk.num_tokens for chunk in plan.chunks)
        if not world.waiting or plan.preempted or len(world.running) == config.max_num_seqs or left == 0:
            return
        head = world.waiting[0]
        start = world.blocks.match(head)
        num_tokens = len(head.token_ids) - start
        if world.scheduler.policy.chunks_prompts:
            num_tokens = min(num_tokens, left, config.max_prefill_chunk or left)
        elif num_tokens > left:
            return
        used = {block for request in world.live for block in request.block_table}
        world.blocks.open(head)
        num_claimed = len(set(head.block_table) - used)
        world.blocks.cancel_open(head)
        end = start + num_tokens
        if config.kv_reservation == "whole":
            end = max(end, head.max_total_tokens - 1)
        needed = -(-end // world.blocks.block_size) - start // world.blocks.block_size + num_claimed
        spare = int(config.watermark * world.blocks.num_blocks) if world.running else 0
        assert needed + spare > world.blocks.num_free_blocks, (
            f"{head.request_id} waits, with {left} tokens and {world.blocks.num_free_blocks} blocks left for its {needed}"
        )

    def _check_the_first_moves_on(self, plan: StepPlan, before: Before) -> None:
        self._steps_as_first = self._steps_as_first + 1 if before.first and before.first is self._first else 0
        self._first = before.first
        limit = 2 * self.world.config.max_model_len + 1
        assert self._steps_as_first <= limit, f"{_ids([before.first])} is the most urgent for over {limit} steps"

    def _check_urgent_head_comes_in(self, before: Before) -> None:
        """Where all who run are of lower priority, the head of the queue is in soon."""
        head = before.waiting[0] if before.waiting else None
        is_urgent = head is not None and all(head.priority < r.priority for r in before.running)
        if not is_urgent or head not in self.world.waiting:
            self._head, self._steps_as_urgent_head = None, 0
            return
        self._steps_as_urgent_head = self._steps_as_urgent_head + 1 if head is self._head else 1
        self._head = head
        limit = self.world.config.max_num_seqs + 1
        assert self._steps_as_urgent_head <= limit, f"{_ids([head])} waits for lower priorities for over {limit} steps"

    def _count(self, plan: StepPlan, before: Before) -> None:
        seen, block_size = self.world.seen, self.world.blocks.block_size
        seen["step"] += 1
        seen["copy-on-write"] += len(plan.copies)
        for request in plan.preempted:
            seen["preempted"] += 1
            seen["preempted within its prompt"] += 0 < before.num_computed[request] < request.num_prompt_tokens
            seen["preempted before its forks"] += bool(request.forks)
            seen["preempted for a higher priority"] += (
                bool(before.waiting) and before.waiting[0].priority < request.priority
            )
        for request in plan.admitted:
            seen["hit"] += request.num_cached > 0
            seen["preempt, then hit"] += request.num_preemptions > 0 and request.num_cached > 0
            seen["all cached but the last token's block"] += (
                0 < len(request.token_ids) - request.num_cached <= block_size
            )
            seen["fork waited for a seat"] += request.sample_index > 0 and request.num_preemptions == 0
        for request, start, num_tokens in plan.chunks:
            seen["chunk short of the end"] += start + num_tokens < len(request.token_ids)
        kinds = {chunk.num_tokens > 1 for chunk in plan.chunks}
        seen["prefill and decode mixed"] += len(kinds) == 2
        seen["budget used up"] += sum(chunk.num_tokens for chunk in plan.chunks) == self.world.config.max_batched_tokens


def _ids(requests: "list[Request] | list[Request | None]") -> list[str]:
    return [request.request_id for request in requests if request]
