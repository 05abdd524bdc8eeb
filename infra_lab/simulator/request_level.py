"""A cluster of replicas, from change to change: exact steps where prompts are computed, one jump over the decodes between.

While a replica only decodes, nothing happens for many steps but that contexts grow by one token a step. With a linear cost
the time of k such steps is a formula, so they are one event:

    seconds(k) = k · (fixed + d · D + c · C) + c · D · k(k - 1)/2
                 D requests decode, and read C keys in the first of the steps
                 d = per_request + per_token,  c = per_context_token + per_pair

       prompts    prompts                                          prompts
    ──┤  step  ├─┤ step  ├─┤ jump: 37 decodes ├─┤ jump: 12 ├─ ─ ─ ┤ step  ├──▶  an arrival ends a jump at its next step

Steps with prompts are planned as the scheduler does (chunked prefill, first come first served), with two differences: a
request reserves KV for all its tokens when it comes in, so nobody is preempted, and no prompt is found in a prefix cache.
Where neither matters, the times are those of `simulate` to rounding; a test holds that. Where KV memory is short, whoever
would have come in early and been preempted waits instead.
"""

import heapq
import math
import random
from collections import OrderedDict, deque
from collections.abc import Sequence
from time import perf_counter
from typing import Literal, NamedTuple, get_args

from infra_lab.errors import ConfigError
from infra_lab.scheduler.config import SchedulerConfig
from infra_lab.scheduler.policies import policy_of
from infra_lab.simulator.cost import LinearStepCost, StepShape
from infra_lab.simulator.replay import Progress, without_garbage_collection
from infra_lab.simulator.report import ServedRequest, ServiceLevel, SimulationReport, Usage, summarize
from infra_lab.simulator.workload import RequestShape

Routing = Literal["round-robin", "random", "least-loaded", "shared-queue"]
"""least-loaded: the fewest requests that run or wait there. shared-queue: the same, but whoever finds all seats of all
replicas taken waits in one queue for the first that is free (with one seat each, the c servers of M/M/c)."""
_REPORT_EVERY = 16_384


class _Job(NamedTuple):
    number: int
    prompt: int
    output: int


class _Chunks(NamedTuple):
    """Sums over the prompts' chunks of a step."""

    tokens: int
    context: int
    pairs: int


_NO_CHUNKS = _Chunks(0, 0, 0)


class _Prefill:
    __slots__ = ("done", "job")

    def __init__(self, job: _Job) -> None:
        self.job, self.done = job, 0


def simulate_cluster(
    times_s: Sequence[float],
    shapes: Sequence[RequestShape],
    config: SchedulerConfig,
    cost: LinearStepCost,
    *,
    num_replicas: int = 1,
    kv_tokens: int | None = None,
    routing: Routing = "least-loaded",
    slo: ServiceLevel | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> SimulationReport:
    """Serve requests on equal replicas and report; `ServedRequest`s come without the times of single tokens.

    times_s: ascending. kv_tokens: of each replica's cache; None: no limit. The seed is that of random routing.
    Raises ConfigError for what it cannot model: another policy than chunked-prefill, a bounded queue, times out of order.
    """
    policy = policy_of(config.policy).name
    if policy != "chunked-prefill" or config.max_waiting is not None:
        raise ConfigError(
            f"policy is {policy!r}, max_waiting {config.max_waiting}; the request-level model knows chunked-prefill "
            "with an unbounded queue only: use the step-level one"
        )
    if num_replicas < 1:
        raise ConfigError(f"num_replicas is {num_replicas}; it must be at least 1")
    if routing not in get_args(Routing):
        raise ConfigError(f"routing is {routing!r}; known: {', '.join(get_args(Routing))}")
    if kv_tokens is not None and kv_tokens < 1:
        raise ConfigError(f"kv_tokens is {kv_tokens}; it must be at least 1, or None for no limit")
    if len(times_s) != len(shapes) or not shapes:
        raise ConfigError(f"{len(times_s)} times and {len(shapes)} shapes; expected as many, and at least one")
    if not all(0 <= a <= b < math.inf for a, b in zip([0.0, *times_s], times_s, strict=False)):
        raise ConfigError("times_s is not ascending from 0 on; sort it")
    cluster = _Cluster(times_s, shapes, config, cost, num_replicas, kv_tokens, routing, seed, progress)
    begin_s = perf_counter()
    with without_garbage_collection():
        cluster.run()
    return cluster.report(perf_counter() - begin_s, slo)


class _Replica:
    """One engine. `V` counts the decode steps since its start, so that a request's last one is a fixed number."""

    __slots__ = (
        "C", "D", "V", "busy_s", "ends", "free_kv", "is_idle", "jump", "limits", "num_steps", "outstanding", "prefills",
        "request_steps", "start_s", "version", "waiting",
    )  # fmt: skip

    def __init__(self, limits: "_Limits", kv_tokens: float) -> None:
        self.limits = limits
        self.waiting: deque[_Job] = deque()
        self.prefills: list[_Prefill] = []
        self.ends: list[tuple[int, _Job]] = []
        """Those who decode, by the step count at which they end."""
        self.D = self.C = self.V = 0
        self.free_kv = kv_tokens
        self.outstanding = 0
        self.is_idle = True
        self.jump = 0
        """Decode steps of the event that runs; 0 in a step with prompts."""
        self.start_s = 0.0
        self.version = 0
        self.busy_s = 0.0
        self.num_steps = self.request_steps = 0

    def start(self, now_s: float) -> float | None:
        """Begin the next step or jump; return when it ends, None if there is nothing to do."""
        self.start_s = now_s
        tokens, context, pairs = self._plan_prompts()
        self.is_idle = not tokens and not self.D
        if self.is_idle:
            return None
        if tokens:
            self.jump = 0
            requests = len(self.prefills) + self.D
            shape = StepShape(requests, tokens + self.D, requests, context + self.C, pairs + self.C)
            seconds = self.limits.cost.shape_s(shape)
            self.request_steps += len(self.prefills) + self.D
        else:
            self.jump = self.ends[0][0] - self.V
            seconds = self.jump_s(self.jump)
        return now_s + seconds

    def _plan_prompts(self) -> "_Chunks":
        """Give prompts their chunks."""
        limits, tokens, context, pairs = self.limits, 0, 0, 0
        if not self.prefills and not self.waiting:
            return _NO_CHUNKS
        budget = limits.budget - self.D - len(self.prefills)
        for prefill in self.prefills:
            take = min(prefill.job.prompt - prefill.done, limits.chunk, 1 + budget)
            budget -= take - 1
            prefill.done += take
            tokens += take
            context += prefill.done
            pairs += take * (prefill.done - take) + take * (take + 1) // 2
        while self.waiting and budget > 0 and self.has_room(self.waiting[0]):
            job = self.waiting.popleft()
            prefill = _Prefill(job)
            prefill.done = take = min(job.prompt, budget, limits.chunk)
            self.prefills.append(prefill)
            self.free_kv -= job.prompt + job.output
            budget -= take
            tokens += take
            context += take
            pairs += take * (take + 1) // 2
        return _Chunks(tokens, context, pairs)

    def has_room(self, job: _Job) -> bool:
        """Whether there is a seat and memory."""
        return self.D + len(self.prefills) < self.limits.seats and job.prompt + job.output <= self.free_kv

    def jump_s(self, steps: int) -> float:
        """Seconds of so many decode steps."""
        growth = self.limits.key_s * self.D * steps * (steps - 1) / 2
        return steps * self.limits.decodes_s(self.D, self.C) + growth

    def shorten(self, now_s: float) -> float:
        """Somebody has come in a jump: let it end at the step that runs now; return when that is."""
        elapsed = now_s - self.start_s
        a = self.limits.key_s * self.D / 2
        b = self.limits.decodes_s(self.D, self.C) - a
        root = (math.sqrt(b * b + 4 * a * elapsed) - b) / (2 * a) if a > 0 else elapsed / b if b > 0 else 0.0
        steps = max(1, math.floor(root))
        while steps < self.jump and self.jump_s(steps) < elapsed:
            steps += 1
        self.jump = min(self.jump, steps)
        return self.start_s + self.jump_s(self.jump)

    def end(self, now_s: float, first_s: list[float]) -> list[_Job]:
        """Take in what has run; note first tokens, return who has got the last one."""
        steps = self.jump or 1
        self.busy_s += now_s - self.start_s
        self.num_steps += steps
        self.request_steps += self.jump * self.D
        self.V += steps
        self.C += steps * self.D
        done: list[_Job] = []
        while self.ends and self.ends[0][0] <= self.V:
            _, job = heapq.heappop(self.ends)
            done.append(job)
            self.D -= 1
            self.C -= job.prompt + job.output
        if self.prefills:
            self._end_prompts(now_s, first_s, done)
        for job in done:
            self.free_kv += job.prompt + job.output
        self.outstanding -= len(done)
        return done

    def _end_prompts(self, now_s: float, first_s: list[float], done: list[_Job]) -> None:
        left = []
        for prefill in self.prefills:
            job = prefill.job
            if prefill.done < job.prompt:
                left.append(prefill)
                continue
            first_s[job.number] = now_s
            if job.output == 1:
                done.append(job)
                continue
            heapq.heappush(self.ends, (self.V + job.output - 1, job))
            self.D += 1
            self.C += job.prompt + 1
        self.prefills = left


class _Limits(NamedTuple):
    seats: int
    budget: int
    chunk: int
    cost: LinearStepCost
    fixed_s: float
    request_s: float
    """Of one that decodes, its keys apart."""
    key_s: float

    def decodes_s(self, requests: int, context: int) -> float:
        return self.fixed_s + self.request_s * requests + self.key_s * context


class _Cluster:
    def __init__(
        self,
        times_s: Sequence[float],
        shapes: Sequence[RequestShape],
        config: SchedulerConfig,
        cost: LinearStepCost,
        num_replicas: int,
        kv_tokens: int | None,
        routing: Routing,
        seed: int,
        progress: Progress | None,
    ) -> None:
        self.times_s, self.shapes, self.progress = times_s, shapes, progress
        self.max_len, self.kv = config.max_model_len, math.inf if kv_tokens is None else kv_tokens
        limits = _Limits(
            config.max_num_seqs,
            config.max_batched_tokens,
            config.max_prefill_chunk or config.max_batched_tokens,
            cost,
            cost.fixed_s,
            cost.per_request_s + cost.per_token_s,
            cost.per_context_token_s + cost.per_pair_s,
        )
        self.replicas = [_Replica(limits, self.kv) for _ in range(num_replicas)]
        self.first_s, self.last_s = [0.0] * len(shapes), [0.0] * len(shapes)
        self.outputs = [0] * len(shapes)
        """Tokens that each was served with; 0 for one that was refused."""
        self.num_rejected = self.num_done = 0
        self._events: list[tuple[float, int, int]] = []
        self._shared: deque[_Job] = deque()
        self._routing = routing
        self._is_balanced = routing in ("least-loaded", "shared-queue")
        self._seats = limits.seats
        self._rng = random.Random(seed)
        self._by_load: list[OrderedDict[int, None]] = [OrderedDict.fromkeys(range(num_replicas))]
        self._least = 0

    def run(self) -> None:
        """Handle arrivals and ends of steps in the order of their times; of equal ones arrivals first."""
        events, times_s = self._events, self.times_s
        next_arrival, num_arrivals = 0, len(times_s)
        while True:
            event_s = events[0][0] if events else math.inf
            if next_arrival < num_arrivals and times_s[next_arrival] <= event_s:
                self._arrive(next_arrival, times_s[next_arrival])
                next_arrival += 1
                continue
            if not events:
                return
            now_s, number, version = heapq.heappop(events)
            if version == self.replicas[number].version:
                self._turn(number, now_s)

    def report(self, wall_s: float, slo: ServiceLevel | None) -> SimulationReport:
        """Sum up."""
        served = [
            ServedRequest(
                index, self.times_s[index], self.shapes[index].prompt_tokens, 0, 0, output, self.first_s[index],
                self.last_s[index], [],
            )
            for index, output in enumerate(self.outputs)
            if output
        ]  # fmt: skip
        end_s = max(self.last_s)
        usage = Usage(
            num_steps=sum(replica.num_steps for replica in self.replicas),
            request_steps=sum(replica.request_steps for replica in self.replicas),
            busy_share=sum(r.busy_s for r in self.replicas) / (end_s * len(self.replicas)) if end_s > 0 else 0.0,
            kv_use_mean=None,
            kv_use_max=None,
            wall_s=wall_s,
        )
        rejected = {"does not fit": self.num_rejected} if self.num_rejected else {}
        return summarize(served, usage, num_requests=len(self.shapes), rejected=rejected, slo=slo)

    def _arrive(self, index: int, now_s: float) -> None:
        prompt, output = self.shapes[index]
        output = min(output, self.max_len - prompt)
        if output < 1 or prompt + output > self.kv:
            self.num_rejected += 1
            return
        self.outputs[index] = output
        job = _Job(index, prompt, output)
        number = self._choose(index)
        replica = self.replicas[number]
        if self._routing == "shared-queue" and replica.outstanding >= self._seats:
            self._shared.append(job)
            return
        self._assign(number, job)
        if replica.is_idle:
            self._push(number, replica.start(now_s))
        elif replica.jump > 1 and replica.waiting[0] is job and replica.has_room(job):
            before = replica.jump
            end_s = replica.shorten(now_s)
            if replica.jump != before:
                self._push(number, end_s)

    def _choose(self, index: int) -> int:
        if self._routing == "round-robin":
            return index % len(self.replicas)
        if self._routing == "random":
            return self._rng.randrange(len(self.replicas))
        while not self._by_load[self._least]:
            self._least += 1
        return next(iter(self._by_load[self._least]))

    def _assign(self, number: int, job: _Job) -> None:
        replica = self.replicas[number]
        replica.waiting.append(job)
        self._move(number, replica.outstanding, replica.outstanding + 1)
        replica.outstanding += 1

    def _move(self, number: int, before: int, after: int) -> None:
        if not self._is_balanced:
            return
        by_load = self._by_load
        del by_load[before][number]
        while len(by_load) <= after:
            by_load.append(OrderedDict())
        by_load[after][number] = None
        self._least = min(self._least, after)

    def _turn(self, number: int, now_s: float) -> None:
        """A replica's step or jump is over: begin the next."""
        replica = self.replicas[number]
        before = replica.outstanding
        done = replica.end(now_s, self.first_s)
        for job in done:
            self.last_s[job.number] = now_s
        if done:
            self._move(number, before, replica.outstanding)
            self._count(len(done))
            while self._shared and replica.outstanding < self._seats:
                self._assign(number, self._shared.popleft())
        self._push(number, replica.start(now_s))

    def _push(self, number: int, end_s: float | None) -> None:
        replica = self.replicas[number]
        replica.version += 1
        if end_s is not None:
            heapq.heappush(self._events, (end_s, number, replica.version))

    def _count(self, done: int) -> None:
        before = self.num_done
        self.num_done += done
        if self.progress is not None and before // _REPORT_EVERY != self.num_done // _REPORT_EVERY:
            self.progress(self.num_done, len(self.shapes))
