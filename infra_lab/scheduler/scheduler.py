"""Continuous batching under one token budget (Orca, Yu 2022; chunked prefill as in Sarathi-Serve, Agrawal 2024).

Each step has a budget of tokens. Those who run come first, the most urgent of them before the others: a decode takes one
token, an unfinished prompt as many as its chunk may have. What is left goes to those who wait.

    budget 16 │ a b c d │ e e e e e e │ f f f f f f │
              │ decodes │ rest of e's │ first chunk │
              │         │ prompt      │ of f's      │

If blocks run out, the least urgent running request is preempted: its blocks are freed and it goes back to the queue with
its tokens, to be computed again (mostly from the prefix cache). The most urgent request is never preempted for another
one, so it always moves on, and with it, in turn, everybody.
"""

from bisect import insort
from itertools import count

from infra_lab.clock import Clock, WallClock
from infra_lab.errors import InvalidRequestError, QueueFullError
from infra_lab.paged_kv.block_manager import BlockManager
from infra_lab.scheduler.config import SchedulerConfig
from infra_lab.scheduler.plan import NO_TOKEN, Chunk, StepPlan, StepResult
from infra_lab.scheduler.request import Request, Status
from infra_lab.scheduler.waiting_queue import WaitingQueue


class Scheduler:
    """Decides, step by step, which requests get how many tokens computed. Call `schedule`, execute, `update`, in turn.

    `add`, `abort` and `finish` may be called between any two of these. Nothing here blocks, sleeps or looks at a tensor.
    """

    def __init__(self, config: SchedulerConfig, blocks: BlockManager, clock: Clock | None = None) -> None:
        self.config = config
        self.blocks = blocks
        self.clock = clock or WallClock()
        self.waiting = WaitingQueue()
        self.running: list[Request] = []
        """Sorted by urgency: the last one is the first to be preempted."""
        self.requests: dict[str, Request] = {}
        """Everything that is not finished, by request id."""
        self._sequence_numbers = count()
        self._step_numbers = count()
        self._watermark_blocks = int(config.watermark * blocks.num_blocks)

    @property
    def has_work(self) -> bool:
        """Whether any request runs or waits."""
        return bool(self.requests)

    # ---- requests come and go ----

    def add(self, request: Request) -> None:
        """Queue a request, and with it its `forks`.

        Raises InvalidRequestError if it could never be served, with the numbers, and QueueFullError if the queue is
        at its limit. In both cases nothing has changed.
        """
        self._check_it_can_be_served(request)
        limit = self.config.max_waiting
        if limit is not None and len(self.waiting) >= limit:
            raise QueueFullError(
                f"{len(self.waiting)} requests wait already, and max_waiting is {limit}; try again later"
            )
        for member in (request, *request.forks):
            prompt = member.num_prompt_tokens
            wanted = (
                self.config.max_model_len if member.params.max_tokens is None else prompt + member.params.max_tokens
            )
            member.max_total_tokens = min(wanted, self.config.max_model_len)
            member.min_total_tokens = prompt + member.params.min_tokens
            member.sequence_number = next(self._sequence_numbers)
            self.requests[member.request_id] = member
        self.waiting.push(request)

    def _check_it_can_be_served(self, request: Request) -> None:
        prompt, limits = request.num_prompt_tokens, self.config
        for member in (request, *request.forks):
            if member.request_id in self.requests:
                raise InvalidRequestError(f"request id {member.request_id!r} is in use; choose another one")
        if prompt == 0:
            raise InvalidRequestError("the prompt has no tokens; give at least one")
        if prompt >= limits.max_model_len:
            raise InvalidRequestError(
                f"the prompt has {prompt} tokens, and with at least one new token it must fit in the context of "
                f"{limits.max_model_len}; shorten it, or raise max_model_len if the model allows"
            )
        output = limits.max_model_len if request.params.max_tokens is None else request.params.max_tokens
        stored = min(prompt + output, limits.max_model_len) - 1  # the last token is sampled, never stored
        needed = -(-stored // self.blocks.block_size)
        if needed > self.blocks.num_blocks:
            raise InvalidRequestError(
                f"the request may grow to {stored} tokens in the KV cache, {needed} blocks of {self.blocks.block_size}, "
                f"and the cache has {self.blocks.num_blocks}; lower max_tokens, or give the cache more memory"
            )
        if 1 + len(request.forks) > limits.max_num_seqs:
            raise InvalidRequestError(
                f"n = {1 + len(request.forks)} samples run side by side, but max_num_seqs is {limits.max_num_seqs}"
            )

    def abort(self, request_id: str) -> bool:
        """End a request at any moment and free all it holds; False if it is not known (finished, perhaps)."""
        request = self.requests.get(request_id)
        if request is None:
            return False
        self.finish(request, "abort")
        return True

    def finish(self, request: Request, reason: str) -> None:
        """End a request, free its blocks, and end with it the forks that it has not had yet."""
        if request.status is Status.RUNNING:
            self.running.remove(request)
        elif request.status is Status.WAITING:
            self.waiting.discard()
        self.blocks.free(request)
        for member in (request, *request.forks):
            self._mark_finished(member, reason)
        request.forks.clear()

    def _mark_finished(self, request: Request, reason: str) -> None:
        request.status = Status.FINISHED
        request.finish_reason = reason
        del self.requests[request.request_id]

    # ---- before a step ----

    def schedule(self) -> StepPlan:
        """Plan one step. The plan's requests must go through `update` before the next call."""
        plan = StepPlan(step=next(self._step_numbers))
        self._preempt_for_urgent(plan)
        num_preempted = len(plan.preempted)
        budget = self._schedule_running(plan, self.config.max_batched_tokens)
        if len(plan.preempted) == num_preempted:  # else blocks are short, and whoever came in now would be next to go
            budget = self._admit_waiting(plan, budget)
        plan.num_tokens = self.config.max_batched_tokens - budget
        return plan

    def _preempt_for_urgent(self, plan: StepPlan) -> None:
        """Where a request of higher priority waits for a seat or for blocks, take those of the lowest that run."""
        urgent = self.waiting.peek()
        if urgent is None:
            return
        first_chunk = min(len(urgent.token_ids), self.config.max_prefill_chunk or self.config.max_batched_tokens)
        needed = -(-first_chunk // self.blocks.block_size) + self._watermark_blocks
        while self.running and urgent.priority < self.running[-1].priority:
            if len(self.running) < self.config.max_num_seqs and self.blocks.num_free_blocks >= needed:
                break
            self._preempt(self.running[-1], plan)

    def _schedule_running(self, plan: StepPlan, budget: int) -> int:
        append = plan.chunks.append
        # Preemption shortens the list from its end while we walk it from its start: whoever goes was not planned yet.
        for request in self.running:
            start = request.num_computed
            num_tokens = len(request.token_ids) - start
            if num_tokens > 1:
                num_tokens = self._chunk_size(num_tokens, budget)
            if num_tokens > budget or num_tokens == 0:
                break
            end = start + num_tokens
            if end > request.capacity and not self._grow_or_preempt(request, end, start, plan):
                break
            append(Chunk(request, start, num_tokens))
            budget -= num_tokens
        return budget

    def _chunk_size(self, num_tokens: int, budget: int) -> int:
        """How many of `num_tokens` missing tokens to compute now; 0 for none."""
        if not self.config.enable_chunked_prefill:
            return num_tokens if num_tokens <= budget else 0
        return min(num_tokens, budget, self.config.max_prefill_chunk or budget)

    def _grow_or_preempt(self, request: Request, end: int, start: int, plan: StepPlan) -> bool:
        """Make room for tokens `start` to `end`, preempting the least urgent until it fits; False if that was us."""
        while (copies := self.blocks.grow(request, end, start)) is None:
            victim = self.running[-1]
            self._preempt(victim, plan)
            if victim is request:
                return False
        plan.copies.extend(copies)
        return True

    def _preempt(self, victim: Request, plan: StepPlan) -> None:
        self.running.remove(victim)
        self.blocks.free(victim)
        victim.num_computed = 0
        victim.num_preemptions += 1
        victim.status = Status.WAITING
        self.waiting.push(victim)
        plan.preempted.append(victim)

    def _admit_waiting(self, plan: StepPlan, budget: int) -> int:
        while budget > 0 and len(self.running) < self.config.max_num_seqs:
            request = self.waiting.peek()
            if request is None or not self._admit(request, plan, budget):
                break
            budget -= plan.chunks[-1].num_tokens
        return budget

    def _admit(self, request: Request, plan: StepPlan, budget: int) -> bool:
        """Claim what the prefix cache has of the request, and make room for its first chunk; False if there is none."""
        start = self.blocks.open(request)
        num_tokens = self._chunk_size(len(request.token_ids) - start, budget)
        end = start + num_tokens
        spare = self._watermark_blocks if self.running else 0
        if num_tokens == 0 or self.blocks.blocks_to_grow(request, end, start) + spare > self.blocks.num_free_blocks:
            self.blocks.cancel_open(request)
            return False
        plan.copies.extend(self.blocks.grow(request, end, start) or ())
        self.waiting.pop()
        request.num_computed = request.num_cached = start
        request.status = Status.RUNNING
        insort(self.running, request, key=_urgency)
        plan.admitted.append(request)
        plan.chunks.append(Chunk(request, start, num_tokens))
        return True

    # ---- after a step ----

    def update(self, plan: StepPlan, result: StepResult) -> list[Request]:
        """Take in what a step computed; return the requests that it finished, their blocks freed.

        Requests that were aborted while the step ran are passed over.
        """
        finished: list[tuple[Request, str]] = []
        running, block_size = Status.RUNNING, self.blocks.block_size
        for (request, start, num_tokens), token_id in zip(plan.chunks, result.token_ids, strict=True):
            if request.status is not running:
                continue
            computed = start + num_tokens
            request.num_computed = computed
            if computed // block_size > request.num_committed_blocks:
                self.blocks.commit(request, computed)
            if token_id == NO_TOKEN:
                continue
            if request.forks:
                self._fork(request)
            token_ids = request.token_ids
            token_ids.append(token_id)
            if token_id in request.stop_token_ids and len(token_ids) >= request.min_total_tokens:
                finished.append((request, "stop"))
            elif len(token_ids) >= request.max_total_tokens:
                finished.append((request, "length"))
        finished += [(plan.chunks[position].request, "error") for position in result.errors]
        for request, reason in finished:
            if request.status is running:
                self.finish(request, reason)
        return [request for request, _ in finished]

    def _fork(self, parent: Request) -> None:
        """Let the other samples of a prompt start from the parent's blocks, each at the prompt's last token.

        Computing that one token again gives each its own logits to sample from, and shows copy-on-write at work: the
        token's block is shared, so the first to write gets a copy. A fork that finds no seat waits like a new request.
        """
        last = parent.num_prompt_tokens - 1
        for fork in parent.forks:
            if len(self.running) < self.config.max_num_seqs:
                self.blocks.fork(parent, fork, last)
                fork.num_computed = fork.num_cached = last
                fork.status = Status.RUNNING
                insort(self.running, fork, key=_urgency)
            else:
                self.waiting.push(fork)
        parent.forks.clear()


def _urgency(request: Request) -> tuple[int, float, int]:
    return request.urgency
