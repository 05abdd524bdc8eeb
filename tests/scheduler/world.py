"""A scheduler with an executor that checks what it executes, and everything that must hold between any two calls.

The world keeps its own list of requests and its own idea of their order; it asks the scheduler only what it decided.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from infra_lab.errors import InvalidRequestError, QueueFullError
from infra_lab.paged_kv.block_manager import BlockManager
from infra_lab.sampling_params import SamplingParams
from infra_lab.scheduler.config import SchedulerConfig
from infra_lab.scheduler.plan import StepPlan, StepResult
from infra_lab.scheduler.policies import DeadlinePolicy, PriorityPolicy, ShortestJobPolicy
from infra_lab.scheduler.request import Request, Status
from infra_lab.scheduler.scheduler import Scheduler
from tests.scheduler.oracle import OracleExecutor, alone
from tests.scheduler.step_rules import StepRules


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    config: SchedulerConfig
    num_blocks: int
    block_size: int
    enable_prefix_cache: bool = True


class SchedulerWorld:
    """One scheduler, its memory, all requests that ever were; `check` compares them."""

    def __init__(
        self,
        settings: Settings,
        scheduler_class: type[Scheduler] = Scheduler,
        manager_class: type[BlockManager] = BlockManager,
    ) -> None:
        self.config = settings.config
        self.blocks = manager_class(
            settings.num_blocks, settings.block_size, enable_prefix_cache=settings.enable_prefix_cache
        )
        self.scheduler = scheduler_class(settings.config, self.blocks)
        self.executor = OracleExecutor(self.scheduler)
        self.plan: StepPlan | None = None
        self.result: StepResult | None = None
        self.everyone: list[Request] = []
        self.seen: Counter[str] = Counter()
        self.history: list[tuple[object, ...]] = []
        self._open: dict[Request, None] = {}  # in the order of arrival; those whose end was not checked yet
        self._stopped: set[Request] = set()  # ended from outside, by a stop string
        self._rules = StepRules(self)
        self._ids = count()

    # ---- what stands where ----

    @property
    def live(self) -> list[Request]:
        """All that have not ended, in the order in which they were added."""
        return [request for request in self._open if not request.is_finished]

    @property
    def unborn(self) -> set[Request]:
        return {fork for request in self.live for fork in request.forks if not fork.is_finished}

    @property
    def waiting(self) -> list[Request]:
        """Those in the queue, the most urgent first."""
        unborn = self.unborn
        queued = [r for r in self.live if r.status is Status.WAITING and r not in unborn]
        return sorted(queued, key=self.urgency)

    @property
    def running(self) -> list[Request]:
        """Those with a seat, the most urgent first."""
        return sorted((r for r in self.live if r.status is Status.RUNNING), key=self.urgency)

    def urgency(self, request: Request) -> tuple[int, float, int]:
        policy, index = self.scheduler.policy, self.everyone.index(request)
        match policy:
            case PriorityPolicy():
                return (0, request.arrival_s + policy.level_s * request.priority, index)
            case ShortestJobPolicy():
                max_tokens = request.params.max_tokens or self.config.max_model_len
                longest = min(request.num_prompt_tokens + max_tokens, self.config.max_model_len)
                return (request.priority, request.arrival_s + policy.token_s * longest, index)
            case DeadlinePolicy() if request.deadline_s is not None:
                return (request.priority, request.deadline_s, index)
            case DeadlinePolicy():
                return (request.priority, request.arrival_s + policy.default_slo_s, index)
        return (request.priority, request.arrival_s, index)

    # ---- what a caller can do ----

    def add(
        self,
        prompt: Sequence[int],
        *,
        params: SamplingParams | None = None,
        priority: int = 0,
        salt: str = "",
        stop: Sequence[int] = (),
        seed: int = 0,
        arrival_s: float | None = None,
        deadline_s: float | None = None,
        request_id: str | None = None,
    ) -> Request:
        """Add a request and its forks; a refusal must be deserved, and must leave everything as it was."""
        number, params = next(self._ids), params or SamplingParams(max_tokens=4)
        request_id = f"r{number}" if request_id is None else request_id
        members = [
            Request(
                token_ids=list(prompt),
                cache_salt=salt,
                request_id=request_id if index == 0 else f"{request_id}#{index}",
                params=params,
                arrival_s=float(number) if arrival_s is None else arrival_s,
                priority=priority,
                deadline_s=deadline_s,
                seed=seed,
                stop_token_ids=frozenset(stop),
                sample_index=index,
            )
            for index in range(params.n)
        ]
        members[0].forks = members[1:]
        # Preempted requests and late forks may have taken the queue past its limit.
        is_full = self.config.max_waiting is not None and len(self.scheduler.waiting) >= self.config.max_waiting
        expected = InvalidRequestError if self._never_fits(members) else QueueFullError if is_full else None
        requests, num_waiting, refusal = dict(self.scheduler.requests), len(self.scheduler.waiting), None
        try:
            self.scheduler.add(members[0])
        except (InvalidRequestError, QueueFullError) as error:
            refusal = error
        found = type(refusal) if refusal else None
        assert found is expected, f"adding {request_id} gives {refusal!r}, not {expected}"
        if refusal:
            self.seen[f"refused: {type(refusal).__name__}"] += 1
            assert self.scheduler.requests == requests, "a refused request was kept"
            assert len(self.scheduler.waiting) == num_waiting, "a refused request waits"
            raise refusal
        self.everyone += members
        self._open.update(dict.fromkeys(members))
        return members[0]

    def _never_fits(self, members: list[Request]) -> bool:
        prompt, max_tokens = len(members[0].token_ids), members[0].params.max_tokens
        longest = self.config.max_model_len if max_tokens is None else prompt + max_tokens
        stored = min(longest, self.config.max_model_len) - 1
        return (
            not 1 <= prompt < self.config.max_model_len
            or stored > self.blocks.num_blocks * self.blocks.block_size
            or len(members) > self.config.max_num_seqs
            or any(member.request_id in self.scheduler.requests for member in members)
        )

    def abort(self, request: Request) -> None:
        """At any moment: waiting, running, planned, executed, not born yet, ended."""
        was_finished, is_unborn = request.is_finished, request in self.unborn
        self.seen["abort, unborn fork"] += is_unborn
        self.seen["abort, planned"] += self.plan is not None and any(c.request is request for c in self.plan.chunks)
        self.seen["abort, parent to be"] += bool(request.forks)
        if was_finished and request.request_id in self.scheduler.requests:
            return  # somebody else has its id now
        assert self.scheduler.abort(request.request_id) is not was_finished, "abort() says the wrong thing"
        assert request.is_finished, f"{request.request_id} was aborted and goes on"
        assert was_finished or request.finish_reason == "abort", f"aborted, and called {request.finish_reason!r}"

    def stop_string(self, request: Request) -> None:
        """End a request as the engine does when its text shows a stop string."""
        self._stopped.add(request)
        self.scheduler.finish(request, "stop")

    def branch(self, parent: Request, num_children: int, *, num_shared: int | None = None) -> list[Request]:
        """End a request, and let children go on from its first `num_shared` tokens, each with a last token of its own.

        The first child takes the parent's id. Those that would outgrow the parent's limit are left out.
        """
        assert self.plan is None, "branch() within a step"
        was_running, limit = parent in self.running, parent.max_total_tokens
        most = parent.num_computed if was_running else len(parent.token_ids)
        shared = parent.token_ids[: most if num_shared is None else min(num_shared, most)]
        is_id_free = self.scheduler.requests.get(parent.request_id) in (parent, None)
        children = [
            Request(
                token_ids=[*shared, index % 2],
                cache_salt=parent.cache_salt,
                request_id=parent.request_id if index == 0 and is_id_free else f"b{next(self._ids)}",
                params=SamplingParams(max_tokens=min(2, limit - len(shared) - 1)),
                arrival_s=parent.arrival_s,
                priority=parent.priority,
                seed=index,
            )
            for index in range(num_children * (len(shared) + 1 < limit))
        ]
        self._stopped |= {request for request in (parent, *parent.forks) if not request.is_finished}
        num_seats = self.config.max_num_seqs - len(self.running) + was_running
        self.everyone += children
        self._open.update(dict.fromkeys(children))
        self.scheduler.branch(parent, children)
        assert parent.is_finished, f"{parent.request_id} has branched and goes on"
        for request in children:
            self.seen[f"branch: {request.status.value}"] += 1
        seated = children[: num_seats * was_running]
        assert [request for request in children if request.status is Status.RUNNING] == seated, (
            "seats are left, or lent"
        )
        for request in seated:
            assert request.num_computed == len(shared), f"{request.request_id} shares {request.num_computed} tokens"
        return children

    def reset(self) -> None:
        self.blocks.reset_prefix_cache()
        self.seen["reset"] += 1

    # ---- one step, in three parts, or until the executor fails ----

    def schedule(self, now_s: float = 1e9) -> StepPlan:
        before = self._rules.before_schedule()
        self.plan = self.scheduler.schedule(now_s)
        self._rules.after_schedule(self.plan, before)
        self.history.append(
            (
                [(chunk.request.request_id, chunk.start, chunk.num_tokens) for chunk in self.plan.chunks],
                list(self.plan.copies),
                _ids(self.plan.admitted),
                _ids(self.plan.preempted),
            )
        )
        return self.plan

    def execute(self) -> None:
        assert self.plan is not None, "execute() without a plan"
        self.result = self.executor.execute(self.plan)

    def update(self) -> list[Request]:
        assert self.plan is not None, "update() without a plan"
        assert self.result is not None, "update() without a result"
        running, failed = set(self.running), {self.plan.chunks[i].request for i in self.result.errors}
        self._count_drafts(self.plan, self.result)
        ended = self.scheduler.update(self.plan, self.result)
        for position, (_, num_accepted) in self.result.speculated.items():
            request, start, _ = self.plan.chunks[position]
            if request.status is Status.RUNNING:
                assert request.num_computed == start + 1 + num_accepted, "drafts are computed again"
        really = {request for request in running if request.is_finished}
        assert len(ended) == len(set(ended)), "update() names a request twice"
        assert set(ended) == really, f"update() names {_ids(ended)}, but it ended {_ids(really)}"
        for request in ended:
            assert (request.finish_reason == "error") == (request in failed), f"{request.request_id} ended wrongly"
        self.plan = self.result = None
        return ended

    def _count_drafts(self, plan: StepPlan, result: StepResult) -> None:
        for position, (proposed, num_accepted) in result.speculated.items():
            stops = plan.chunks[position].request.stop_token_ids
            self.seen["all drafts kept"] += bool(proposed) and num_accepted == len(proposed)
            self.seen["no draft kept"] += bool(proposed) and num_accepted == 0
            self.seen["stopped by a draft"] += any(token in stops for token in proposed[:num_accepted])

    def fail(self) -> None:
        """Let the executor raise: the engine ends the requests of the step, and all others go on."""
        assert self.plan is not None, "fail() without a plan"
        self.seen["executor failed"] += 1
        for chunk in self.plan.chunks:
            if not chunk.request.is_finished:
                self.scheduler.finish(chunk.request, "error")
        self.plan = self.result = None

    def step(self) -> list[Request]:
        """Do what is left of the current step, or a whole one if there is none."""
        if self.plan is None:
            self.schedule()
        if self.result is None:
            self.execute()
        return self.update()

    def drain(self) -> None:
        """Step until all have ended; nothing may be left over. StepRules bounds how long that can take."""
        while self.live:
            self.step()
            self.check()
        if self.plan is not None:
            self.step()
        self.check()
        assert self.blocks.num_free_blocks == self.blocks.num_blocks, "blocks leaked"
        assert not self.scheduler.requests, f"still known: {list(self.scheduler.requests)}"
        assert not self.scheduler.running, f"still running: {_ids(self.scheduler.running)}"
        assert len(self.scheduler.waiting) == 0, f"{len(self.scheduler.waiting)} still wait"
        assert self.scheduler.waiting.peek() is None, "somebody waits who has ended"
        assert not self.scheduler.has_work, "work is left"

    # ---- what must hold after every call ----

    def check(self) -> None:
        live, waiting, running, unborn = self.live, self.waiting, self.running, self.unborn
        self.blocks.check_integrity(live)
        num_used = len({block for request in live for block in request.block_table})
        assert self.blocks.num_free_blocks == self.blocks.num_blocks - num_used, "free blocks do not add up"
        assert self.scheduler.requests == {request.request_id: request for request in live}, (
            f"known: {list(self.scheduler.requests)}; alive: {_ids(live)}"
        )
        assert self.scheduler.has_work == bool(live), "has_work is wrong"
        assert self.scheduler.running == running, f"running {_ids(self.scheduler.running)}, not {_ids(running)}"
        assert len(self.scheduler.waiting) == len(waiting), f"{len(waiting)} wait, not {len(self.scheduler.waiting)}"
        head = waiting[0] if waiting else None
        assert self.scheduler.waiting.peek() is head, f"the head of the queue is not {_ids(waiting[:1])}"
        assert len(running) <= self.config.max_num_seqs, f"{len(running)} run at once"
        for request in (*waiting, *unborn):
            assert not request.block_table, f"{request.request_id} waits and holds blocks {request.block_table}"
            assert request.num_computed == 0, f"{request.request_id} waits with {request.num_computed} computed tokens"
        if self.plan is None:
            for request in running:
                assert request.num_computed < len(request.token_ids), f"{request.request_id} has nothing to compute"
        for request in [request for request in self._open if request.is_finished]:
            self._check_end(request)
            del self._open[request]

    def _check_end(self, request: Request) -> None:
        expected, reason = alone(request, self.config.max_model_len), request.finish_reason
        output = request.output_token_ids
        assert not request.block_table, f"{request.request_id} has ended and holds blocks {request.block_table}"
        self.seen[f"ended: {reason}"] += 1
        if reason in ("abort", "error") or request in self._stopped:
            assert output == expected.token_ids[: len(output)], f"{output} is not how {expected.token_ids} begins"
        else:
            assert (output, reason) == expected, f"{request.request_id}: {output}, {reason!r}, not {expected}"


def small_world(
    *, num_blocks: int = 32, block_size: int = 4, enable_prefix_cache: bool = True, **limits: Any
) -> SchedulerWorld:
    """A world for one named case: 4 seats, 16 tokens a step and no watermark, unless said otherwise."""
    defaults = {"max_model_len": 64, "max_num_seqs": 4, "max_batched_tokens": 16, "watermark": 0.0}
    return SchedulerWorld(
        Settings(
            config=SchedulerConfig(**{**defaults, **limits}),
            num_blocks=num_blocks,
            block_size=block_size,
            enable_prefix_cache=enable_prefix_cache,
        )
    )


def planned(plan: StepPlan) -> dict[str, int]:
    """How many tokens each request gets."""
    return {chunk.request.request_id: chunk.num_tokens for chunk in plan.chunks}


def _ids(requests: Sequence[Request] | set[Request]) -> list[str]:
    return [request.request_id for request in requests]
