"""A workload through a real engine on its clock, requests coming when they come; it ends in the simulator's own report.

The loop is the one of the simulator's replay, in one thread: whoever is due is queued, then the engine steps. A token's time
is when `step` has returned, as a caller sees it.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from time import thread_time
from typing import Any

from infra_lab.clock import Clock
from infra_lab.engine.core import EngineCore
from infra_lab.engine.llm import LLM
from infra_lab.engine.outputs import OutputDelta
from infra_lab.errors import ConfigError, InvalidRequestError, QueueFullError
from infra_lab.paged_kv.block_manager import BlockManager
from infra_lab.sampling_params import SamplingParams
from infra_lab.scheduler.scheduler import Scheduler
from infra_lab.simulator.report import ServedRequest, ServiceLevel, SimulationReport, Usage, summarize
from infra_lab.simulator.traced_request import TracedRequest

VOCAB_SIZE = 256
"""Of the prompts' tokens: bytes, which the bundled model's vocabulary has, and every other one."""


class CPUClock:
    """The CPU time of the calling thread, and a sleep is over at once: what an engine would show on a core of its own.

    On a wall clock, every program that shares the core is part of the measurement. True only of an engine that computes in the
    thread that calls it (num_threads=1, on a CPU).
    """

    def __init__(self) -> None:
        self._slept_s = 0.0

    def now(self) -> float:
        """Return computed and slept time in seconds."""
        return thread_time() + self._slept_s

    def sleep(self, seconds: float) -> None:
        """Move on by `seconds`."""
        self._slept_s += max(0.0, seconds)


def core_with(llm: LLM, clock: Clock | None = None, **settings: Any) -> EngineCore:
    """Return an engine on a model that is loaded, its cache empty and its scheduler with settings of its own.

    clock: that of the model's own engine, unless given. All compute in the same KV memory, so no two may have requests at once.
    Raises ConfigError as SchedulerConfig.
    """
    own = llm.core.scheduler.blocks
    blocks = BlockManager(own.num_blocks, own.block_size, enable_prefix_cache=own.enable_prefix_cache)
    scheduler = Scheduler(replace(llm.resolved.scheduler, **settings), blocks)
    return EngineCore(
        scheduler,
        llm.core.executor,
        llm.tokenizer,
        vocab_size=llm.model.config.vocab_size,
        clock=clock or llm.core.clock,
    )


def serve_open_loop(
    core: EngineCore, requests: Sequence[TracedRequest], *, slo: ServiceLevel | None = None
) -> SimulationReport:
    """Serve independent requests, each from its arrival on the engine's clock, to all of its output tokens.

    Blocks in use are those at the ends of steps. Raises ConfigError for requests that follow another one.
    """
    if any(request.follows is not None for request in requests):
        raise ConfigError("a request follows another one; an open loop takes independent requests only")
    run = _OpenLoop(core, requests)
    run.serve()
    return run.report(slo)


class _OpenLoop:
    def __init__(self, core: EngineCore, requests: Sequence[TracedRequest]) -> None:
        self.core, self.requests = core, requests
        self.order = sorted(range(len(requests)), key=lambda index: requests[index].arrival_s, reverse=True)
        """Those to come, the next one last."""
        self.start_s = core.clock.now()
        self.times_s: list[list[float]] = [[] for _ in requests]
        self.last: dict[int, OutputDelta] = {}
        self.rejected: Counter[str] = Counter()
        self.num_steps = self.request_steps = self.max_used = 0
        self.busy_s = self.used_block_s = 0.0

    def now_s(self) -> float:
        """Seconds since the start."""
        return self.core.clock.now() - self.start_s

    def serve(self) -> None:
        """Step until nobody is left."""
        core, order = self.core, self.order
        while order or core.has_work:
            while order and self.due_s(order[-1]) <= core.clock.now():
                self.queue(order.pop())
            next_s = self.due_s(order[-1]) - core.clock.now() if order else math.inf
            if not core.has_work:
                core.clock.sleep(next_s if order else 0.0)  # nothing is left where the last to come was refused
            elif not self.step() and core.held_s:
                core.clock.sleep(min(core.held_s, next_s))

    def due_s(self, index: int) -> float:
        """When a request comes, on the engine's clock."""
        return self.start_s + self.requests[index].arrival_s

    def queue(self, index: int) -> None:
        """Add one request."""
        traced = self.requests[index]
        params = SamplingParams(max_tokens=traced.output_tokens, temperature=0.0, ignore_eos=True)
        try:
            self.core.add(
                traced.prompt_token_ids(VOCAB_SIZE),
                params,
                request_id=str(index),
                priority=traced.priority,
                arrival_s=self.due_s(index),
            )
        except (InvalidRequestError, QueueFullError) as error:
            self.rejected["queue full" if isinstance(error, QueueFullError) else "does not fit"] += 1

    def step(self) -> bool:
        """Run one step; return whether anything was computed."""
        begin_s = self.now_s()
        deltas = self.core.step()
        end_s = self.now_s()
        if self.core.last_step is None:
            return False
        for delta in deltas:
            index = int(delta.request_id)
            self.times_s[index] += [end_s] * len(delta.token_ids)
            self.last[index] = delta
        record = self.core.recorder.last
        assert record is not None
        self.num_steps += 1
        self.request_steps += len(record.chunks)
        self.busy_s += end_s - begin_s
        self.used_block_s += record.used_blocks * (end_s - begin_s)
        self.max_used = max(self.max_used, record.used_blocks)
        return True

    def report(self, slo: ServiceLevel | None) -> SimulationReport:
        """Sum up."""
        served = [
            ServedRequest(
                index=index,
                arrival_s=self.requests[index].arrival_s,
                prompt_tokens=delta.metrics.num_prompt_tokens,
                cached_tokens=delta.metrics.num_cached_tokens,
                num_preemptions=delta.metrics.num_preemptions,
                output_tokens=len(self.times_s[index]),
                first_token_s=self.times_s[index][0],
                last_token_s=self.times_s[index][-1],
                token_times_s=self.times_s[index],
            )
            for index, delta in sorted(self.last.items())
        ]
        end_s, num_blocks = self.now_s(), self.core.scheduler.blocks.num_blocks
        usage = Usage(
            num_steps=self.num_steps,
            request_steps=self.request_steps,
            busy_share=self.busy_s / end_s if end_s > 0 else 0.0,
            kv_use_mean=self.used_block_s / (self.busy_s * num_blocks) if self.busy_s > 0 else None,
            kv_use_max=self.max_used / num_blocks,
            wall_s=end_s,
        )
        return summarize(served, usage, num_requests=len(self.requests), rejected=dict(self.rejected), slo=slo)
