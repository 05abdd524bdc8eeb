"""What all requests share, and the one door through which they get to the engine."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from infra_lab.clock import Clock, WallClock
from infra_lab.server.admission import Admission
from infra_lab.server.api_error import ApiError, shutting_down
from infra_lab.server.config import ServerConfig
from infra_lab.server.context import Context
from infra_lab.server.generation import Generation, Receive
from infra_lab.server.job import Job
from infra_lab.server.metrics import ServerMetrics
from infra_lab.server.rate_limit import RateLimiter
from infra_lab.server.served import ServedEngine


@dataclass(slots=True)
class Runtime:
    """The engine, the limits, and everything that runs now."""

    served: ServedEngine
    config: ServerConfig
    metrics: ServerMetrics
    admission: Admission
    rates: RateLimiter
    running: dict[Generation, float] = field(default_factory=dict)
    """What runs or waits, and since when."""
    draining_since_s: float | None = None

    @classmethod
    def of(cls, served: ServedEngine, config: ServerConfig, clock: Clock | None = None) -> "Runtime":
        """Put the parts together."""
        return cls(
            served,
            config,
            ServerMetrics(served),
            Admission(served.max_num_seqs, config.max_waiting),
            RateLimiter(config, clock or WallClock()),
        )

    def start(self, context: Context, job: Job, receive: Receive) -> Generation:
        """Let a job in and start it. Raises ApiError: 503 while shutting down, 429 or 400 at a limit."""
        if self.is_draining:
            raise shutting_down()
        self.admission.enter(job.num_choices)
        try:
            self.rates.admit(context.key, job.num_prompt_tokens)
            context.generation = Generation(
                self.served,
                self._with_the_servers_limits(job, context),
                request_id=context.engine_id,
                observer=self.metrics,
                max_buffered_bytes=self.config.max_buffered_bytes if context.is_stream else None,
            )
        except BaseException:
            self.admission.leave(job.num_choices, None)
            raise
        context.generation.watch(receive)
        self.running[context.generation] = time.monotonic()
        return context.generation

    def end(self, context: Context) -> None:
        """Account for a request's generation, if it had one: called once, when its response is over however it ended."""
        generation = context.generation
        if generation is None:
            return
        generation.close()
        service_s = time.monotonic() - self.running.pop(generation)
        self.admission.leave(generation.job.num_choices, service_s if generation.error is None else None)
        self.rates.charge(context.key, generation.num_output_tokens)
        self.metrics.ended(generation)

    def _with_the_servers_limits(self, job: Job, context: Context) -> Job:
        timeouts = [t for t in (job.timeout_s, context.timeout_s, self.config.request_timeout_s) if t is not None]
        priority, salt, key = job.priority, job.cache_salt, context.key
        if key is not None:
            priority = priority if key.priority is None else max(priority, key.priority)
            # A name has no white space, so no two keys can come to the same salt, whatever their clients add.
            salt = f"{key.name}\n{salt}" if self.config.isolate_keys else salt
        return replace(job, priority=priority, cache_salt=salt, timeout_s=min(timeouts, default=None))

    # ---- the way down ----

    @property
    def is_draining(self) -> bool:
        """Whether new requests are refused because the server is going away."""
        return self.draining_since_s is not None

    def drain(self) -> None:
        """Take no more requests."""
        if self.draining_since_s is None:
            self.draining_since_s = time.monotonic()

    def is_drained(self) -> bool:
        """Whether the server may go: nothing runs, or what runs has had its time (and is cut off here)."""
        if self.draining_since_s is None:
            return False
        waited_s = time.monotonic() - self.draining_since_s
        if self.running and waited_s >= self.config.drain_s:
            self.cut_all(shutting_down())
        return waited_s >= self.config.linger_s and (not self.running or waited_s >= self.config.drain_s)

    def cut_all(self, error: ApiError) -> None:
        """End everything that runs."""
        for generation in list(self.running):
            generation.cut(error)

    # ---- health ----

    def trouble(self) -> Mapping[str, object] | None:
        """What is wrong with the engine; None if it is well. It is unwell if it has work and gets nothing done."""
        if not self.running:
            return None
        core = self.served.engine.core
        busy_s = time.monotonic() - min(self.running.values())
        last = core.recorder.last
        since_step_s = busy_s if last is None else core.clock.now() - (last.start_s + last.duration_s)
        stalled_s = min(busy_s, since_step_s)
        if stalled_s <= self.config.stall_s:
            return None
        return {"reason": "the engine has work and has not finished a step", "stalled_s": round(stalled_s, 1)}
