"""Each class below breaks one rule of the scheduler; random operations must notice, by what the table says."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from infra_lab.paged_kv.block_manager import BlockManager
from infra_lab.paged_kv.sequence import KVSequence
from infra_lab.scheduler.plan import Chunk, Speculated, StepPlan, StepResult
from infra_lab.scheduler.request import Request, Status
from infra_lab.scheduler.scheduler import Scheduler
from infra_lab.scheduler.waiting_queue import WaitingQueue
from tests.scheduler.random_driver import drive

# ---- what may be read ----


class MatchableWhenPlanned(Scheduler):
    """Registers blocks before they are computed: a request of the same step may read them."""

    def _claim(self, request: Request, budget: int) -> Chunk | None:
        for other in self.running:
            self.blocks.commit(other, min(other.capacity, len(other.token_ids)))
        return super()._claim(request, budget)


class RegistersWholePromptAfterFirstChunk(Scheduler):
    def update(self, plan: StepPlan, result: StepResult) -> list[Request]:
        for request, _, _ in plan.chunks:
            if request.status is Status.RUNNING:
                self.blocks.commit(request, min(request.capacity, len(request.token_ids)))
        return super().update(plan, result)


class CacheGivesTheLastToken(BlockManager):
    """Leaves nothing to compute of a prompt that is cached whole."""

    def _cached_prefix(self, seq: KVSequence) -> list[int]:
        return super()._cached_prefix(KVSequence([*seq.token_ids, 0], seq.cache_salt))


# ---- preemption ----


class KeepsNumComputedWhenPreempted(Scheduler):
    def _preempt(self, plan: StepPlan) -> Request:
        num_computed = self.running[-1].num_computed
        victim = super()._preempt(plan)
        victim.num_computed = num_computed
        return victim


class GoesOnWhereItWasPreempted(Scheduler):
    """The same mistake, hidden from the queue: the old count comes back after the new admission."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.old: dict[Request, int] = {}

    def _preempt(self, plan: StepPlan) -> Request:
        num_computed = self.running[-1].num_computed
        victim = super()._preempt(plan)
        self.old[victim] = num_computed
        return victim

    def update(self, plan: StepPlan, result: StepResult) -> list[Request]:
        ended = super().update(plan, result)
        for request in plan.admitted:
            if request.status is Status.RUNNING and request in self.old:
                request.num_computed = max(request.num_computed, self.old.pop(request))
        return ended


class LosesThePreempted(Scheduler):
    def _preempt(self, plan: StepPlan) -> Request:
        victim = super()._preempt(plan)
        self.waiting.discard(victim)
        return victim


class PreemptsTheMostUrgent(Scheduler):
    def _preempt(self, plan: StepPlan) -> Request:
        planned = {chunk.request for chunk in plan.chunks}
        self.running.append(self.running.pop(next(i for i, r in enumerate(self.running) if r not in planned)))
        return super()._preempt(plan)


# ---- the budget, the seats, the queue ----


class AdmitsBeyondTheBudget(Scheduler):
    def _admit_waiting(self, plan: StepPlan, budget: int) -> int:
        return super()._admit_waiting(plan, self.config.max_batched_tokens)


class ForksBeyondTheSeats(Scheduler):
    def _fork(self, parent: Request) -> None:
        seated, self.running = self.running, []
        super()._fork(parent)
        self.running = sorted(seated + self.running, key=lambda request: request.urgency)


class ClosesTheDoorNowAndThen(Scheduler):
    def _admit_waiting(self, plan: StepPlan, budget: int) -> int:
        return super()._admit_waiting(plan, budget if plan.step % 4 else 0)


class IgnoresTheWatermark(Scheduler):
    def _claim(self, request: Request, budget: int) -> Chunk | None:
        self._watermark_blocks = 0
        return super()._claim(request, budget)


class IgnoresTheChunkCap(Scheduler):
    def schedule(self, now_s: float = 0.0) -> StepPlan:
        self._max_chunk = self.config.max_batched_tokens
        return super().schedule(now_s)


class PromptsDelayDecodes(Scheduler):
    """Serves those who run strictly by urgency, without a token set aside for each."""

    def _schedule_running(self, plan: StepPlan) -> int:
        budget, urgent = self.config.max_batched_tokens, self.waiting.peek()
        for request in self.running:
            start = request.num_computed
            is_outranked = urgent is not None and urgent.priority < request.priority
            num_tokens = min(len(request.token_ids) - start, budget, 1 if is_outranked else self._max_chunk)
            if num_tokens == 0 or not self._grow_or_preempt(request, start + num_tokens, start, plan):
                break
            plan.chunks.append(Chunk(request, start, num_tokens))
            budget -= num_tokens
        return budget


class LowPriorityPromptsKeepTheBudget(Scheduler):
    """A long prompt goes on taking whole steps while somebody of higher priority waits."""

    def _schedule_running(self, plan: StepPlan) -> int:
        urgent = self.waiting.peek()
        if urgent is None:
            return super()._schedule_running(plan)
        priority, urgent.priority = urgent.priority, 99
        budget = super()._schedule_running(plan)
        urgent.priority = priority
        return budget


class NeverPreemptsForPriority(Scheduler):
    def _preempt_for_urgent(self, plan: StepPlan) -> None:
        pass


class LatestFirst(WaitingQueue):
    def push(self, request: Request) -> None:
        request.sequence_number *= -1
        super().push(request)
        request.sequence_number *= -1


class ServesTheLatestFirst(Scheduler):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.waiting = LatestFirst()


class QueueHasNoLimit(Scheduler):
    def add(self, request: Request) -> None:
        waiting, self.waiting = self.waiting, WaitingQueue()
        try:
            super().add(request)
            waiting.push(request)
        finally:
            self.waiting = waiting


class AbortedStayInTheQueue(Scheduler):
    def finish(self, request: Request, reason: str) -> None:
        is_in_queue = request in self.waiting._members
        super().finish(request, reason)
        if is_in_queue:
            self.waiting.push(request)


class AbortLeaksABlock(Scheduler):
    def abort(self, request_id: str) -> bool:
        request = self.requests.get(request_id)
        if request and request.block_table:
            request.block_table.pop()
        return super().abort(request_id)


# ---- forks ----


class SkipsCopyOnWrite(Scheduler):
    """A fork writes into the block that it shares with its parent."""

    def _fork(self, parent: Request) -> None:
        forks = list(parent.forks)
        super()._fork(parent)
        for fork in forks:
            fork.capacity = len(fork.block_table) * self.blocks.block_size


class ForgetsTheCopies(Scheduler):
    def schedule(self, now_s: float = 0.0) -> StepPlan:
        plan = super().schedule(now_s)
        plan.copies.clear()
        return plan


class ForgetsUnbornForks(Scheduler):
    def finish(self, request: Request, reason: str) -> None:
        request.forks.clear()
        super().finish(request, reason)


class BearsAbortedForks(Scheduler):
    def _fork(self, parent: Request) -> None:
        for fork in parent.forks:
            fork.status = Status.WAITING
        super()._fork(parent)


# ---- branches ----


class BranchKeepsTheParentsBlocks(Scheduler):
    def branch(self, parent: Request, children: Sequence[Request]) -> None:
        held = list(parent.block_table)
        super().branch(parent, children)
        parent.block_table = held


class BranchWritesInPlace(Scheduler):
    """Children write into the block that they share."""

    def branch(self, parent: Request, children: Sequence[Request]) -> None:
        super().branch(parent, children)
        for child in children:
            child.capacity = len(child.block_table) * self.blocks.block_size


class BranchSharesWhatWasNotComputed(Scheduler):
    """Takes the parent's newest token, which has no KV yet, for one that has."""

    def branch(self, parent: Request, children: Sequence[Request]) -> None:
        super().branch(parent, children)
        for child in children:
            child.num_computed += child.status is Status.RUNNING


class BranchBeyondTheSeats(Scheduler):
    def branch(self, parent: Request, children: Sequence[Request]) -> None:
        config, self.config = self.config, replace(self.config, max_num_seqs=99, max_batched_tokens=999)
        super().branch(parent, children)
        self.config = config


class BranchForgetsTheBlocksOfTheUnseated(Scheduler):
    """Those without a seat wait, and go on holding what they share."""

    def branch(self, parent: Request, children: Sequence[Request]) -> None:
        free, self.blocks.free = self.blocks.free, lambda seq: None if seq in children else free(seq)  # type: ignore[method-assign]
        super().branch(parent, children)
        self.blocks.free = free  # type: ignore[method-assign]


# ---- the end of a request ----


class DropsATokenNowAndThen(Scheduler):
    def update(self, plan: StepPlan, result: StepResult) -> list[Request]:
        ended = super().update(plan, result)
        for request in self.running:
            if request.num_output_tokens and plan.step % 10 == 0:
                request.token_ids.pop()
        return ended


class TakesATokenTwiceNowAndThen(Scheduler):
    def update(self, plan: StepPlan, result: StepResult) -> list[Request]:
        ended = super().update(plan, result)
        for request in self.running:
            if 0 < request.num_output_tokens < request.max_total_tokens - request.num_prompt_tokens - 1:
                request.token_ids += request.token_ids[-1:] * (plan.step % 10 == 0)
        return ended


class ReportsTheAborted(Scheduler):
    """What `update` once did with a request whose logits were not finite, and which was aborted meanwhile."""

    def update(self, plan: StepPlan, result: StepResult) -> list[Request]:
        aborted = [chunk.request for chunk in plan.chunks if chunk.request.is_finished]
        return super().update(plan, result) + aborted


# ---- drafts ----


class DraftsBeyondTheBudget(Scheduler):
    def _make_room_for_drafts(self, plan: StepPlan, budget: int) -> None:
        super()._make_room_for_drafts(plan, self.config.max_batched_tokens)


class DraftsBeyondTheBlocks(Scheduler):
    def _make_room_for_drafts(self, plan: StepPlan, budget: int) -> None:
        for request in self.running:
            request.capacity += self.config.num_speculative_tokens
        super()._make_room_for_drafts(plan, budget)


class KeepsRejectedDrafts(Scheduler):
    def _take_accepted(self, plan: StepPlan, result: StepResult) -> dict[Request, str]:
        result.speculated = {i: Speculated(s.proposed, len(s.proposed)) for i, s in result.speculated.items()}
        return super()._take_accepted(plan, result)


class ForgetsThatDraftsAreComputed(Scheduler):
    """Goes on after the decode's own token: harmless to the tokens, and it computes the accepted ones twice."""

    def update(self, plan: StepPlan, result: StepResult) -> list[Request]:
        ended = super().update(plan, result)
        for position in result.speculated:
            request, start, _ = plan.chunks[position]
            request.num_computed = min(request.num_computed, start + 1)
        return ended


class GoesOnPastADraftedStop(Scheduler):
    def _take_accepted(self, plan: StepPlan, result: StepResult) -> dict[Request, str]:
        super()._take_accepted(plan, result)
        return {}


class StopsBeforeMinTokens(Scheduler):
    def add(self, request: Request) -> None:
        super().add(request)
        request.min_total_tokens = 0


class GoesOneTokenTooFar(Scheduler):
    def add(self, request: Request) -> None:
        super().add(request)
        request.max_total_tokens += 1


class TakesWhatNeverFits(Scheduler):
    def _check_it_can_be_served(self, request: Request) -> None:
        if request.request_id in self.requests or not request.num_prompt_tokens:
            super()._check_it_can_be_served(request)


def drive_often(broken: type[Scheduler] | type[BlockManager]) -> None:
    rng = random.Random(0)
    for _ in range(300):
        if issubclass(broken, BlockManager):
            drive(rng, 150, manager_class=broken)
        else:
            drive(rng, 150, scheduler_class=broken)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (MatchableWhenPlanned, r"token \d+: block \d+ holds"),
        (RegistersWholePromptAfterFirstChunk, r"token \d+: block \d+ holds"),
        (CacheGivesTheLastToken, r"gets 0 tokens|nothing was left to compute"),
        (KeepsNumComputedWhenPreempted, r"waits with \d+ computed tokens"),
        (GoesOnWhereItWasPreempted, r"token \d+: |has nothing to compute|commit\(\) of \d+ tokens"),
        (LosesThePreempted, r"\d wait, not \d"),
        (PreemptsTheMostUrgent, r"preempted \[.*\], not \["),
        (AdmitsBeyondTheBudget, r"tokens.*, over the budget of \d+|waits, with \d+ tokens"),
        (ForksBeyondTheSeats, r"\d run at once"),
        (ClosesTheDoorNowAndThen, r"waits, with \d+ tokens and \d+ blocks left"),
        (IgnoresTheWatermark, r"\d blocks free, not \d"),
        (IgnoresTheChunkCap, r"over the cap of \d+"),
        (PromptsDelayDecodes, r"runs, and gets no token"),
        (LowPriorityPromptsKeepTheBudget, r"of a low-priority prompt are computed"),
        (NeverPreemptsForPriority, r"waits for lower priorities"),
        (ServesTheLatestFirst, r"the head of the queue is not"),
        (QueueHasNoLimit, r"gives None, not .*QueueFullError"),
        (AbortedStayInTheQueue, r"\d wait, not \d"),
        (AbortLeaksABlock, r"has ref_count \d, but stands in"),
        (SkipsCopyOnWrite, r"writes to block \d+, which has \d owners"),
        (ForgetsTheCopies, r"token \d+: block \d+ holds"),
        (ForgetsUnbornForks, r"\d wait, not \d"),
        (BearsAbortedForks, r"has ref_count \d, but stands in|\d wait, not \d"),
        (BranchKeepsTheParentsBlocks, r"has ended and holds blocks"),
        (BranchWritesInPlace, r"writes to block \d+, which has \d owners"),
        (BranchSharesWhatWasNotComputed, r"shares \d+ tokens"),
        (BranchBeyondTheSeats, r"seats are left, or lent"),
        (BranchForgetsTheBlocksOfTheUnseated, r"waits and holds blocks"),
        (DropsATokenNowAndThen, r"has nothing to compute"),
        (TakesATokenTwiceNowAndThen, r"not Outcome|is not how"),
        (ReportsTheAborted, r"update\(\) names \['.*'\], but it ended"),
        (DraftsBeyondTheBudget, r"a step of \d+ tokens and \d+ drafts, over the budget of \d+"),
        (DraftsBeyondTheBlocks, r"capacity is \d+ tokens with \d+ blocks"),
        (KeepsRejectedDrafts, r"not Outcome|is not how"),
        (GoesOnPastADraftedStop, r"not Outcome|drafts are computed again"),
        (ForgetsThatDraftsAreComputed, r"drafts are computed again"),
        (StopsBeforeMinTokens, r"'stop', not Outcome"),
        (GoesOneTokenTooFar, r"not Outcome\(.*'length'"),
        (TakesWhatNeverFits, r"gives None, not .*InvalidRequestError"),
    ],
)  # fmt: skip
def test_random_operations_catch(broken: type[Scheduler] | type[BlockManager], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        drive_often(broken)
