"""Continuous batching under one token budget (Orca, Yu 2022; chunked prefill as in Sarathi-Serve, Agrawal 2024).

Each step has a budget of tokens. Everyone who runs is sure of one, which is all that a decode needs: no prompt delays
it. Unfinished prompts then share the others, the most urgent first, and what is left goes to those who wait.

    budget 16 │ a b c d │ e e e e e e │ f f f f f f │
              │ decodes │ rest of e's │ first chunk │
              │         │ prompt      │ of f's      │

If blocks run out, the least urgent running request is preempted: its blocks are freed and it goes back to the queue with
its tokens, to be computed again (mostly from the prefix cache). The most urgent request is never preempted for another
one, so it always moves on, and with it, in turn, everybody.

This is the default policy. Others decide differently who comes in, in which order, and whether prompts are cut (`policies`).
"""

from bisect import insort
from collections.abc import Sequence
from itertools import count

from infra_lab.errors import InvalidRequestError, QueueFullError
from infra_lab.paged_kv.block_manager import BlockManager
from infra_lab.scheduler.config import SchedulerConfig
from infra_lab.scheduler.plan import NO_TOKEN, Chunk, StepPlan, StepResult
from infra_lab.scheduler.policies import policy_of
from infra_lab.scheduler.request import Request, Status
from infra_lab.scheduler.waiting_queue import WaitingQueue

_LEAVES_ITS_TAIL = ("stop", "length", "abort")
"""Reasons to end after which the next turn of a chat may go on from the last token's KV; an error's is not to be trusted."""


class Scheduler:
    """Decides, step by step, which requests get how many tokens computed. Call `schedule`, execute, `update`, in turn.

    Or one step ahead, while the latest plan is computed (which the executor has read whole by then):

        schedule 1 │ execute 1 ─────────────▶│ update 1 │ execute 2 ─────────────▶│ update 2 │ …
                   │  expect 1, schedule 2   │          │  expect 2, schedule 3   │          │

    A decode in plan 2 is of the token that step 1 samples; who ends with step 1 leaves plan 2 before it is executed (see
    `StepPlan.without_finished`).

    `add`, `abort` and `finish` may be called between two steps, or while one is computed but not between `schedule` and the
    executor's reading of the plan. Nothing here blocks, sleeps, or looks at a clock or a tensor: time comes with the requests.
    """

    def __init__(self, config: SchedulerConfig, blocks: BlockManager) -> None:
        self.config = config
        self.blocks = blocks
        self.waiting = WaitingQueue()
        self.running: list[Request] = []
        """Sorted by urgency: the last one is the first to be preempted."""
        self.requests: dict[str, Request] = {}
        """Everything that is not finished, by request id."""
        self._sequence_numbers = count()
        self._step_numbers = count()
        self._watermark_blocks = int(config.watermark * blocks.num_blocks)
        self._max_chunk = config.max_prefill_chunk or config.max_batched_tokens
        self.policy = policy_of(config.policy)
        self._batch_seats = 0
        """Seats of the current batch that are still to be taken, where the policy has batches."""
        self.held_until_s: float | None = None
        """When to call `schedule` again, if the latest plan is empty because a batch waits for others to join it."""

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
            self._register(member)
        self.waiting.push(request)

    def _register(self, request: Request) -> None:
        prompt, limit = request.num_prompt_tokens, self.config.max_model_len
        wanted = limit if request.params.max_tokens is None else prompt + request.params.max_tokens
        request.max_total_tokens = min(wanted, limit)
        request.min_total_tokens = prompt + request.params.min_tokens
        request.rank = self.policy.rank(request)
        request.sequence_number = next(self._sequence_numbers)
        self.requests[request.request_id] = request

    def _check_it_can_be_served(self, request: Request) -> None:
        prompt, limits = request.num_prompt_tokens, self.config
        ids = [member.request_id for member in (request, *request.forks)]
        for request_id in ids:
            if request_id in self.requests or ids.count(request_id) > 1:
                raise InvalidRequestError(f"request id {request_id!r} is in use; choose another one")
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
            self.waiting.discard(request)
        if reason in _LEAVES_ITS_TAIL:
            self.blocks.commit_tail(request, request.num_computed)
        self.blocks.free(request)
        for member in (request, *request.forks):
            if not member.is_finished:
                member.status = Status.FINISHED
                member.finish_reason = reason
                del self.requests[member.request_id]
        request.forks.clear()

    def branch(self, parent: Request, children: Sequence[Request]) -> None:
        """End `parent` between two steps, and let `children` go on from its tokens, as the beams of a search do.

        A child's tokens are its prompt. All but the last of them must be the parent's first ones, and computed where the
        parent runs: their blocks are shared, and whoever writes to a shared one gets a copy. A child may take its
        parent's id. One that finds no seat waits, and so do all of a parent that runs no more; they continue what was
        accepted once, so neither `max_waiting` nor the checks of `add` apply: none may grow past the parent's limit.
        """
        is_running = parent.status is Status.RUNNING
        if is_running:
            for child in children:
                self.blocks.fork(parent, child, len(child.token_ids) - 1)
        if not parent.is_finished:
            self.finish(parent, "branched")
        for child in children:
            self._register(child)
            if is_running and len(self.running) < self.config.max_num_seqs:
                self._seat(child, len(child.token_ids) - 1)
            else:
                self.blocks.free(child)
                self.waiting.push(child)

    # ---- before a step ----

    def schedule(self, now_s: float = 0.0) -> StepPlan:
        """Plan one step. The plan before must have been through `update`, or `expect`.

        now_s: on the clock of the requests' arrival times; it matters to policies that wait for a batch to fill.
        """
        plan = StepPlan(step=next(self._step_numbers))
        self._open_batch(now_s)
        if self.policy.prefills_first:
            self._admit_waiting(plan, self.config.max_batched_tokens)
            if not plan.is_empty:
                return plan
        self._preempt_for_urgent(plan)
        num_preempted = len(plan.preempted)
        budget = self._schedule_running(plan)
        if len(plan.preempted) == num_preempted:  # else blocks are short, and whoever came in now would be next to go
            budget = self._admit_waiting(plan, budget)
            if self.config.num_speculative_tokens:
                self._make_room_for_drafts(plan, budget)
        return plan

    def _open_batch(self, now_s: float) -> None:
        """Where the policy has batches and the last one is done, start the next, or hold it until it fills."""
        self.held_until_s = None
        rule = self.policy.batch_rule(len(self.waiting))
        if rule is None:
            self._batch_seats = self.config.max_num_seqs
        elif not self.running and (head := self.waiting.peek()):
            due_s = head.arrival_s + rule.max_wait_s
            is_due = len(self.waiting) >= rule.size or now_s >= due_s
            self._batch_seats = min(rule.size, len(self.waiting)) if is_due else 0
            self.held_until_s = None if is_due else due_s

    def _preempt_for_urgent(self, plan: StepPlan) -> None:
        """Where one who outranks those that run waits for a seat, tokens or blocks, take those of the least urgent."""
        urgent = self.waiting.peek()
        while urgent and self.running and self.policy.outranks(urgent, self.running[-1]):
            if self._claim(urgent, self.config.max_batched_tokens - len(self.running)):
                self.blocks.cancel_open(urgent)  # its turn comes when those who run have had theirs
                break
            self._preempt(plan)

    def _schedule_running(self, plan: StepPlan) -> int:
        """Plan everyone who runs; return what is left of the budget, unless somebody was preempted for blocks."""
        append, outranks = plan.chunks.append, self.policy.outranks
        urgent = self.waiting.peek()
        budget = self.config.max_batched_tokens - len(self.running)  # one token is set aside for each
        # Preemption shortens the list from its end while we walk it from its start: whoever goes was not planned yet.
        for request in self.running:
            start = request.num_computed + request.num_in_flight
            num_tokens = len(request.token_ids) - start
            if num_tokens == 0:  # the step that is computed samples its next token
                if request.forks or len(request.token_ids) + 1 == request.max_total_tokens:
                    continue  # with that it forks, or ends
                num_tokens = 1
            elif num_tokens > 1:
                is_outranked = urgent is not None and outranks(urgent, request)
                num_tokens = 1 if is_outranked else min(num_tokens, self._max_chunk, 1 + budget)
                budget -= num_tokens - 1
            end = start + num_tokens
            if end > request.capacity and not self._grow_or_preempt(request, end, start, plan):
                break
            append(Chunk(request, start, num_tokens))
        return budget

    def _grow_or_preempt(self, request: Request, end: int, start: int, plan: StepPlan) -> bool:
        """Make room for tokens `start` to `end`, preempting the least urgent until it fits; False if that was us."""
        while (copies := self.blocks.grow(request, end, start)) is None:
            if self._preempt(plan) is request:
                return False
        plan.copies.extend(copies)
        return True

    def _preempt(self, plan: StepPlan) -> Request:
        """Send the least urgent of those who run back to the queue."""
        victim = self.running.pop()
        self.blocks.commit_tail(victim, victim.num_computed)
        self.blocks.free(victim)
        victim.num_computed = victim.num_in_flight = 0
        victim.num_preemptions += 1
        victim.status = Status.WAITING
        self.waiting.push(victim)
        self._batch_seats += 1  # it may come back to its batch
        plan.preempted.append(victim)
        return victim

    def _admit_waiting(self, plan: StepPlan, budget: int) -> int:
        """Let in those who wait, in the policy's order, until one finds no room: nobody overtakes it.

        Returns what is left of the budget.
        """
        for request in self.policy.line(self.waiting, self.blocks.match):
            chunk = self._claim(request, budget)
            if chunk is None:
                break
            _, start, num_tokens = chunk
            copies = self.blocks.grow(request, self._tokens_to_hold(request, start + num_tokens), start)
            assert copies is not None, "_claim has seen that there is room"
            plan.copies.extend(copies)
            self.waiting.discard(request)
            request.num_computed = request.num_cached = start
            request.first_step = plan.step
            request.status = Status.RUNNING
            insort(self.running, request, key=_urgency)
            self._batch_seats -= 1
            plan.admitted.append(request)
            plan.chunks.append(chunk)
            budget -= num_tokens
        return budget

    def _make_room_for_drafts(self, plan: StepPlan, budget: int) -> None:
        """Give decodes what nobody wanted of the budget, for proposals, and no block that somebody waits for or may need."""
        for position, (request, start, _) in enumerate(plan.chunks):
            end = start + 1
            num_drafts = min(self.config.num_speculative_tokens, budget, request.max_total_tokens - end - 1)
            is_decode = end == len(request.token_ids) and not request.forks and request.params.allows_speculation
            if num_drafts < 1 or not is_decode:
                continue
            if end + num_drafts > request.capacity and not self.waiting:
                needed = self.blocks.blocks_to_grow(request, end + num_drafts, end)
                if needed + self._watermark_blocks <= self.blocks.num_free_blocks:
                    self.blocks.grow(request, end + num_drafts, end)  # into blocks of its own: nothing to copy
            num_drafts = min(num_drafts, request.capacity - end)
            if num_drafts:
                plan.drafts[position] = num_drafts
                budget -= num_drafts

    def _claim(self, request: Request, budget: int) -> Chunk | None:
        """Claim what the prefix cache has of a waiting request; return its first chunk, for which there is room.

        None, and nothing claimed, if there is no seat, no budget, or not enough blocks beyond the watermark.
        """
        if len(self.running) == self.config.max_num_seqs or budget == 0 or self._batch_seats == 0:
            return None
        start = self.blocks.open(request)
        missing = len(request.token_ids) - start
        num_tokens = min(missing, budget, self._max_chunk) if self.policy.chunks_prompts else missing
        spare = self._watermark_blocks if self.running else 0
        needed = self.blocks.blocks_to_grow(request, self._tokens_to_hold(request, start + num_tokens), start) + spare
        if num_tokens > budget or needed > self.blocks.num_free_blocks:
            self.blocks.cancel_open(request)
            return None
        return Chunk(request, start, num_tokens)

    def _tokens_to_hold(self, request: Request, num_tokens: int) -> int:
        """Return for how many tokens one who comes in gets blocks."""
        return num_tokens if self.config.kv_reservation == "paged" else max(num_tokens, request.max_total_tokens - 1)

    def expect(self, plan: StepPlan) -> None:
        """Let the next call of `schedule` plan for what will be once this plan is computed, which it is now.

        Not with `num_speculative_tokens`: how many tokens a step brings is not known then.
        """
        for request, _, num_tokens in plan.chunks:
            if not request.is_finished:
                request.num_in_flight = num_tokens

    # ---- after a step ----

    def update(self, plan: StepPlan, result: StepResult) -> list[Request]:
        """Take in what a step computed; return the requests that it finished, their blocks freed.

        Requests that ended or were preempted while the step ran are passed over: the result then has NO_TOKEN for them.
        """
        finished = self._take_accepted(plan, result) if result.speculated else {}
        running, block_size, step = Status.RUNNING, self.blocks.block_size, plan.step
        for position, ((request, start, num_tokens), token_id) in enumerate(
            zip(plan.chunks, result.token_ids, strict=True)
        ):
            if request.status is not running or request.first_step > step:
                result.token_ids[position] = NO_TOKEN
                continue
            request.num_in_flight = 0
            # What it sampled follows its last token, which is computed then: accepted proposals are among its tokens.
            computed = start + num_tokens if token_id == NO_TOKEN else len(request.token_ids)
            request.num_computed = computed
            if computed // block_size > request.num_committed_blocks:
                self.blocks.commit(request, computed)
            if token_id == NO_TOKEN or request in finished:
                continue
            if request.forks:
                self._fork(request)
            token_ids = request.token_ids
            token_ids.append(token_id)
            if token_id in request.stop_token_ids and len(token_ids) >= request.min_total_tokens:
                finished[request] = "stop"
            elif len(token_ids) >= request.max_total_tokens:
                finished[request] = "length"
        for position in result.errors:
            request = plan.chunks[position].request
            if request.status is running and request.first_step <= step:
                finished[request] = "error"
        for request, reason in finished.items():
            self.finish(request, reason)
        return list(finished)

    def _take_accepted(self, plan: StepPlan, result: StepResult) -> dict[Request, str]:
        """Append the proposals that were accepted, up to a token that ends the request; return those that ended."""
        finished: dict[Request, str] = {}
        for position, (proposed, num_accepted) in result.speculated.items():
            request = plan.chunks[position].request
            if request.status is not Status.RUNNING:
                continue
            for token_id in proposed[:num_accepted]:
                request.token_ids.append(token_id)
                if token_id in request.stop_token_ids:
                    finished[request] = "stop"
                    break
        return finished

    def _fork(self, parent: Request) -> None:
        """Let the other samples of a prompt start from the parent's blocks, each at the prompt's last token.

        Computing that one token again gives each its own logits to sample from, and shows copy-on-write at work: the
        token's block is shared, so the first to write gets a copy. A fork that finds no seat waits like a new request.
        """
        last = parent.num_prompt_tokens - 1
        for fork in parent.forks:
            if fork.is_finished:  # aborted before it was born
                continue
            if len(self.running) < self.config.max_num_seqs:
                self.blocks.fork(parent, fork, last)
                self._seat(fork, last)
            else:
                self.waiting.push(fork)
        parent.forks.clear()

    def _seat(self, child: Request, num_computed: int) -> None:
        """Let a request run that has got another one's blocks for its first `num_computed` tokens."""
        child.num_computed = child.num_cached = num_computed
        child.status = Status.RUNNING
        insort(self.running, child, key=_urgency)


def _urgency(request: Request) -> tuple[int, float, int]:
    return request.urgency
