"""Conversations served by one engine's settings on a virtual clock, with what speculation accepts drawn by chance.

Scheduler, block manager and prefix cache are the real ones. The answers are known beforehand, so that computing a step is no
more than letting its cost go by, keeping the first proposals that a coin of a given bias accepts, and saying the next token.

An answer ends with a token that stops it. What a request may come to at most is more: nobody knows when it will stop.
"""

import heapq
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from infra_lab.errors import InvariantError
from infra_lab.paged_kv.block_manager import BlockManager
from infra_lab.sampling_params import SamplingParams
from infra_lab.scheduler.config import SchedulerConfig
from infra_lab.scheduler.plan import NO_TOKEN, Speculated, StepPlan, StepResult
from infra_lab.scheduler.policies import StaticPolicy, policy_of
from infra_lab.scheduler.request import Request
from infra_lab.scheduler.scheduler import Scheduler
from infra_lab.simulator.cost import ShapeCost, StepShape
from infra_lab.simulator.traced_request import VOCAB_SIZE, TracedRequest, check_workload

_STOP, _WRONG = VOCAB_SIZE, VOCAB_SIZE + 1
"""Tokens that no stream has: the end of an answer, and a proposal that is not accepted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What engines that are compared have in common: sizes, and what a step costs. A preset says nothing of these."""

    cost: ShapeCost
    draft_cost: ShapeCost
    """Of one proposal, for all requests that the draft model proposes to at once."""
    num_kv_blocks: int
    block_size: int = 16
    max_model_len: int = 4096
    max_num_seqs: int = 32
    max_batched_tokens: int = 1024
    max_tokens: int = 512
    """What a request may be answered with, at most."""


class Speculating(NamedTuple):
    """How many tokens are proposed to a decode, and how probably each is accepted where those before it were."""

    num_tokens: int = 0
    acceptance: float = 0.0


NOTHING_PROPOSED = Speculating()


class PoolUse(NamedTuple):
    """The KV pool during one step, in slots."""

    start_s: float
    end_s: float
    stored: int
    """Slots of blocks in use that hold a token; one that several requests share counts once."""
    reserved: int
    """Slots of blocks in use."""


@dataclass(slots=True)
class EngineRun:
    """What became of a workload under one engine's settings."""

    total_slots: int
    pool: list[PoolUse] = field(default_factory=list)
    ttft_s: list[float] = field(default_factory=list)
    tpot_s: list[float] = field(default_factory=list)
    """Of the requests with more than one token."""
    prompt_tokens: int = 0
    computed_prompt_tokens: int = 0
    """Those that the prefix cache did not have, and those of preempted requests once more."""
    output_tokens: int = 0
    decodes: int = 0
    """A request in a step that computed no more of it than its last token."""
    seats_used: int = 0
    """Requests that ran, summed over the steps."""

    @property
    def end_s(self) -> float:
        """When the last request was done."""
        return self.pool[-1].end_s

    @property
    def kv_utilisation(self) -> float:
        """Slots that hold a token over slots reserved, each over time."""
        stored = sum((use.end_s - use.start_s) * use.stored for use in self.pool)
        return stored / sum((use.end_s - use.start_s) * use.reserved for use in self.pool)

    @property
    def mean_batch(self) -> float:
        """Requests in a step, on average."""
        return self.seats_used / len(self.pool)

    @property
    def tokens_per_s(self) -> float:
        """Of the answers, from the start to the end."""
        return self.output_tokens / self.end_s


@dataclass(slots=True, eq=False, kw_only=True)
class _Answered(Request):
    """A request that knows its answer."""

    index: int
    answer: list[int]
    token_times_s: list[float] = field(default_factory=list)


def serve_with(
    settings: Mapping[str, Any],
    requests: Sequence[TracedRequest],
    machine: Machine,
    speculating: Speculating = NOTHING_PROPOSED,
    *,
    seed: int = 0,
) -> EngineRun:
    """Serve a workload with an engine's settings, as `EnginePreset.settings` has them (policy, KV reservation, prefix cache).

    A policy "static" has a batch as large as the machine has seats. A request that `follows` another comes a think time after
    that one's answer. Raises ConfigError for an empty workload, InvalidRequestError for a request that can never be served.
    """
    check_workload(requests)
    return _Run(settings, requests, machine, speculating, random.Random(seed)).run()


class _Run:
    def __init__(
        self,
        settings: Mapping[str, Any],
        requests: Sequence[TracedRequest],
        machine: Machine,
        speculating: Speculating,
        rng: random.Random,
    ) -> None:
        self.requests, self.machine, self.speculating, self.rng = requests, machine, speculating, rng
        policy = policy_of(settings["policy"])
        if policy.name == "static":
            policy = StaticPolicy(batch_size=machine.max_num_seqs)
        budget = machine.max_batched_tokens
        config = SchedulerConfig(
            policy=policy,
            kv_reservation=settings["kv_reservation"],
            max_model_len=machine.max_model_len,
            max_num_seqs=machine.max_num_seqs,
            max_batched_tokens=budget if policy.chunks_prompts else max(budget, machine.max_model_len),
            num_speculative_tokens=speculating.num_tokens,
        )
        blocks = BlockManager(
            machine.num_kv_blocks,
            machine.block_size,
            enable_prefix_cache=settings["enable_prefix_cache"],
            prefix_index=settings.get("prefix_index", "hash"),
        )
        self.scheduler = Scheduler(config, blocks)
        self.now_s = 0.0
        self.result = EngineRun(machine.num_kv_blocks * machine.block_size)
        self.params = SamplingParams(max_tokens=machine.max_tokens, temperature=0.0)
        self.due = [(request.arrival_s, index) for index, request in enumerate(requests) if request.follows is None]
        heapq.heapify(self.due)
        self.followers: dict[int, list[int]] = {}
        for index, request in enumerate(requests):
            if request.follows is not None:
                self.followers.setdefault(request.follows, []).append(index)

    def run(self) -> EngineRun:
        while self.due or self.scheduler.has_work:
            while self.due and self.due[0][0] <= self.now_s:
                self._queue(*heapq.heappop(self.due))
            plan = self.scheduler.schedule(self.now_s)
            if plan.is_empty:
                self._wait()
            else:
                self._step(plan)
        return self.result

    def _queue(self, arrival_s: float, index: int) -> None:
        traced = self.requests[index]
        answer = [*traced.answer_token_ids()[: self.machine.max_tokens][:-1], _STOP]
        request = _Answered(
            token_ids=traced.prompt_token_ids(),
            request_id=str(index),
            params=self.params,
            arrival_s=arrival_s,
            stop_token_ids=frozenset((_STOP,)),
            index=index,
            answer=answer,
        )
        self.scheduler.add(request)
        self.result.prompt_tokens += request.num_prompt_tokens

    def _wait(self) -> None:
        if not self.due:
            raise InvariantError(f"{len(self.scheduler.waiting)} requests wait, nobody comes, and the plan is empty")
        self.now_s = max(self.now_s, self.due[0][0])

    def _step(self, plan: StepPlan) -> None:
        result, begin_s = self._compute(plan), self.now_s
        self.now_s += self._cost_s(plan)
        self._count(plan, begin_s)
        for position, (chunk, token_id) in enumerate(zip(plan.chunks, result.token_ids, strict=True)):
            if token_id != NO_TOKEN:
                request = _answered(chunk.request)
                num_new = 1 + (result.speculated[position].num_accepted if position in result.speculated else 0)
                request.token_times_s += [self.now_s] * num_new
        for finished in self.scheduler.update(plan, result):
            self._end(_answered(finished))

    def _compute(self, plan: StepPlan) -> StepResult:
        result = StepResult([NO_TOKEN] * len(plan.chunks))
        for position, (request, start, num_tokens) in enumerate(plan.chunks):
            if start + num_tokens < len(request.token_ids):
                continue
            left = _answered(request).answer[request.num_output_tokens :]
            kept = 0
            if room := plan.drafts.get(position, 0):
                while kept < min(room, len(left) - 1) and self.rng.random() < self.speculating.acceptance:
                    kept += 1
                result.speculated[position] = Speculated([*left[:kept], *[_WRONG] * (room - kept)], kept)
            result.token_ids[position] = left[kept]
        return result

    def _cost_s(self, plan: StepPlan) -> float:
        """The model over all tokens and proposals, after the draft model, a proposal at a time."""
        shape = StepShape.of(plan)
        if not plan.drafts:
            return self.machine.cost.shape_s(shape)
        num_drafts = sum(plan.drafts.values())
        lengths = [len(plan.chunks[position].request.token_ids) for position in plan.drafts]
        checked = StepShape(
            shape.num_requests,
            shape.num_tokens + num_drafts,
            shape.num_sampled + num_drafts,
            shape.context + num_drafts,
            shape.pairs
            + sum(length * room for length, room in zip(lengths, plan.drafts.values(), strict=True))
            + sum(room * (room + 1) // 2 for room in plan.drafts.values()),
        )
        one_proposal = self.machine.draft_cost.shape_s(StepShape.of_decodes(len(lengths), sum(lengths)))
        return self.machine.cost.shape_s(checked) + max(plan.drafts.values()) * one_proposal

    def _count(self, plan: StepPlan, begin_s: float) -> None:
        blocks, result = self.scheduler.blocks, self.result
        reserved = (blocks.num_blocks - blocks.num_free_blocks) * blocks.block_size
        empty = sum(
            len(request.block_table) * blocks.block_size - request.num_computed for request in self.scheduler.running
        )
        written = plan.num_tokens
        result.pool.append(PoolUse(begin_s, self.now_s, reserved - empty + written, reserved))
        result.seats_used += len(self.scheduler.running)
        for request, start, num_tokens in plan.chunks:
            result.computed_prompt_tokens += max(0, min(start + num_tokens, request.num_prompt_tokens) - start)
            result.decodes += num_tokens == 1 and request.num_output_tokens > 0

    def _end(self, request: _Answered) -> None:
        result, times_s = self.result, request.token_times_s
        result.ttft_s.append(times_s[0] - request.arrival_s)
        if len(times_s) > 1:
            result.tpot_s.append((times_s[-1] - times_s[0]) / (len(times_s) - 1))
        result.output_tokens += request.num_output_tokens
        for index in self.followers.get(request.index, ()):
            heapq.heappush(self.due, (self.now_s + self.requests[index].arrival_s, index))


def _answered(request: Request) -> _Answered:
    assert isinstance(request, _Answered), "all that this scheduler has was queued here"
    return request
