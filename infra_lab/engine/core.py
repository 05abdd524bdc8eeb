"""The step loop: schedule, execute, update, hand out. One thread at a time; `LLM` and `AsyncEngine` drive it.

With overlap, a call of `step` plans the next step while one is computed, and leaves that running while the caller works:

    executor   │ compute 1 ──────────▶│          │ compute 2 ──────────────────────────▶│
    core       │ schedule 2 ▸ wait    │ update 1,│ hand out 1 │ the caller │ schedule 3 │ update 2, …
               │                      │ launch 2 │            │            │ ▸ wait     │
    step()     ├───────────────────────────────────────────────┤            ├──────────────────────

What a GPU waits for then is `update` and the launch alone. The price: who arrives while a step is computed joins the one after
the next; and a stop string, which shows in the text only, costs a token that is thrown away. (SGLang's overlap scheduler, 2024,
and vLLM's async scheduling, 2025, also leave the sampled tokens on the GPU for the next step, which then waits for nothing; but
not where a penalty or a grammar needs to know them.)
"""

import secrets
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import count
from typing import NamedTuple, Never

from infra_lab.clock import Clock
from infra_lab.engine.output_stream import OutputStream
from infra_lab.engine.outputs import OutputDelta
from infra_lab.engine.recorder import FlightRecorder
from infra_lab.engine.sampling import GrammarCompiler, validate
from infra_lab.errors import ConfigError, InvalidRequestError
from infra_lab.models.tokenizer import Tokenizer
from infra_lab.sampling_params import SamplingParams
from infra_lab.scheduler.plan import NO_TOKEN, Executor, OverlappingExecutor, StepPlan, StepResult
from infra_lab.scheduler.request import Request
from infra_lab.scheduler.scheduler import Scheduler


class _Step(NamedTuple):
    """A step on its way."""

    plan: StepPlan
    scheduled_s: float
    """When its planning began."""
    result: Callable[[], StepResult]
    """Computes it, or waits until it is computed."""


class EngineCore:
    """A scheduler, an executor and the streams of the requests between them.

    overlap: plan a step while the one before is computed. Raises ConfigError unless the executor is an `OverlappingExecutor`.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        executor: Executor,
        tokenizer: Tokenizer,
        *,
        vocab_size: int,
        clock: Clock,
        overlap: bool = False,
    ) -> None:
        self.scheduler = scheduler
        self.executor = executor
        self.tokenizer = tokenizer
        self.recorder = FlightRecorder()
        self.clock = clock
        self.grammars = GrammarCompiler(tokenizer, vocab_size)
        self.last_step: tuple[StepPlan, StepResult] | None = None
        """What the latest step planned and computed, for who has requests in the scheduler without a stream here."""
        self._vocab_size = vocab_size
        self._streams: dict[str, OutputStream] = {}
        self._ids = count()
        self._overlap: OverlappingExecutor | None = None
        """What launches steps, where they overlap."""
        self._launched: _Step | None = None
        if overlap:
            if not isinstance(executor, OverlappingExecutor):
                raise ConfigError(f"{type(executor).__name__} has no launch(), which overlap needs; leave it off")
            self._overlap = executor

    @property
    def has_work(self) -> bool:
        """Whether a request runs or waits, or a step is computed."""
        return self.scheduler.has_work or self._launched is not None

    def is_open(self, request_id: str) -> bool:
        """Whether any sample of the request has not ended yet."""
        return any(stream.public_id == request_id for stream in self._streams.values())

    def add(
        self,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        *,
        request_id: str | None = None,
        priority: int = 0,
        deadline_s: float | None = None,
        cache_salt: str = "",
        arrival_s: float | None = None,
    ) -> str:
        """Queue a prompt; return its id. With `n` > 1 its samples share that id and differ by index.

        deadline_s: when its first token is due, on the engine's clock; policy "deadline" goes by it.

        Raises InvalidRequestError, MissingExtraError (a grammar needs xgrammar) or QueueFullError, with nothing changed.
        """
        validate(params, self._vocab_size)
        self.check_prompt(prompt_token_ids)
        public_id = self.new_request_id() if request_id is None else request_id
        if public_id in self._streams:
            raise InvalidRequestError(f"request id {public_id!r} is in use; choose another one")
        params = self.grammars.bind(params)
        goes_on = params.ignore_eos and params.grammar is None
        eos = () if goes_on else self.tokenizer.eos_token_ids
        seed = secrets.randbits(63) if params.seed is None else params.seed
        samples = [
            Request(
                token_ids=list(prompt_token_ids),
                cache_salt=cache_salt,
                request_id=public_id if index == 0 else f"{public_id}#{index}",
                params=params,
                arrival_s=self.clock.now() if arrival_s is None else arrival_s,
                priority=priority,
                deadline_s=deadline_s,
                seed=seed,
                stop_token_ids=frozenset((*eos, *params.stop_token_ids)),
                sample_index=index,
            )
            for index in range(params.n)
        ]
        samples[0].forks = samples[1:]
        self.scheduler.add(samples[0])
        for sample in samples:
            self._streams[sample.request_id] = OutputStream(sample, public_id, self.tokenizer)
        return public_id

    def follow(self, request_id: str) -> deque[OutputDelta]:
        """Return a queue that gets all deltas of an open request from now on, whoever steps the engine or ends it."""
        deltas = deque[OutputDelta]()
        for stream in self._streams.values():
            if stream.public_id == request_id:
                stream.follower = deltas
        return deltas

    def check_prompt(self, token_ids: Sequence[int]) -> None:
        """Raise InvalidRequestError if a token of a prompt is outside the vocabulary."""
        for token_id in token_ids:
            if not 0 <= token_id < self._vocab_size:
                raise InvalidRequestError(f"token id {token_id} is outside the vocabulary of {self._vocab_size}")

    def new_request_id(self) -> str:
        """Return an id that no other request gets from here."""
        return f"request-{next(self._ids)}"

    def abort(self, request_id: str) -> list[OutputDelta]:
        """End all samples of a request; return their last deltas, or nothing if it is not known (any more)."""
        members = [key for key, stream in self._streams.items() if stream.public_id == request_id]
        for key in members:
            self.scheduler.abort(key)
        return [self._streams.pop(key).end() for key in members]

    def step(self) -> list[OutputDelta]:
        """Run one step; return what it added to each sample.

        If the executor raises, the requests of the step end with reason "error" and the exception goes on; all others,
        and the engine, are unharmed.
        """
        start_s = self.clock.now()
        self.last_step = None
        step, self._launched = self._launched or self._launch(start_s, self.scheduler.schedule(start_s)), None
        if step is None:
            return []
        plan, planned_s, ahead = step.plan, self.clock.now(), StepPlan(step=0)
        if self._overlap:
            self.scheduler.expect(plan)
            ahead = self.scheduler.schedule(planned_s)
        scheduled_s = self.clock.now()
        try:
            result = step.result()
        except BaseException:
            # The plan's copies may be undone and its blocks half-written: none of its requests can go on.
            for chunk in plan.chunks:
                if not chunk.request.is_finished:
                    self.scheduler.finish(chunk.request, "error")
            self._launched = self._launch(planned_s, ahead.without_finished())
            raise
        self.last_step = (plan, result)
        executed_s = self.clock.now()
        finished = self.scheduler.update(plan, result)
        updated_s = self.clock.now()
        if self._overlap:
            self._launched = self._launch(planned_s, ahead.without_finished())
        launched_s = self.clock.now()
        deltas = self._emit(plan, result, finished, step.scheduled_s, updated_s)
        end_s = self.clock.now()
        timings_s = {
            "schedule": scheduled_s - start_s,
            **result.timings_s,
            "update": updated_s - executed_s,
            "output": end_s - launched_s,
        }
        if self._overlap:
            timings_s["prepare"] = launched_s - updated_s
        self.recorder.record(
            plan, result, finished, self.scheduler, start_s=start_s, duration_s=end_s - start_s, timings_s=timings_s
        )
        return deltas

    def _launch(self, scheduled_s: float, plan: StepPlan) -> _Step | None:
        """Make a step of a plan that is not empty, and start it where steps overlap. What goes wrong is told by its result."""
        if plan.is_empty:
            return None
        if self._overlap is None:
            return _Step(plan, scheduled_s, partial(self.executor.execute, plan))
        try:
            result = self._overlap.launch(plan)
        except Exception as error:  # noqa: BLE001 - it belongs to this step, and the one before has yet to be handed out
            result = partial(_raise, error)
        return _Step(plan, scheduled_s, result)

    @contextmanager
    def without_overlap(self) -> Iterator[None]:
        """Run steps one after the other for a while: for who changes what runs by what the latest step has computed.

        A step that was under way is finished first; what it brings goes to who follows its requests, and to nobody else.
        """
        overlap, self._overlap = self._overlap, None
        try:
            if self._launched is not None:
                self.step()
            yield
        finally:
            self._overlap = overlap

    @property
    def held_s(self) -> float:
        """Seconds until the policy lets a batch start that waits for others to join it; 0: step now."""
        held_until_s = self.scheduler.held_until_s
        return 0.0 if held_until_s is None else max(0.0, held_until_s - self.clock.now())

    def failed(self, message: str, request_id: str | None = None) -> list[OutputDelta]:
        """The last deltas of samples that ended with an error, of one request or (after `step` raised) of all."""
        members = [
            key
            for key, stream in self._streams.items()
            if stream.request.finish_reason == "error" and request_id in (None, stream.public_id)
        ]
        return [self._streams.pop(key).end(message) for key in members]

    def _emit(
        self, plan: StepPlan, result: StepResult, finished: list[Request], start_s: float, now_s: float
    ) -> list[OutputDelta]:
        deltas = []
        for position, (chunk, token_id) in enumerate(zip(plan.chunks, result.token_ids, strict=True)):
            request = chunk.request
            stream = self._streams.get(request.request_id)
            if (
                stream is None or stream.request is not request
            ):  # aborted while the step ran; its id may be another one's now
                continue
            if stream.metrics.first_scheduled_s is None:
                stream.metrics.first_scheduled_s = start_s
            if position in result.errors:
                deltas += self.failed(result.errors[position], stream.public_id)
            if token_id == NO_TOKEN:
                continue
            is_complete = request.params.grammar is not None and token_id in self.tokenizer.eos_token_ids
            if is_complete and not request.is_finished:  # before min_tokens: its grammar allowed nothing else
                self.scheduler.finish(request, "stop")
                finished.append(request)
            deltas.append(stream.push(result.logprobs.get(position), now_s))
            if deltas[-1].finish_reason is not None:
                if not request.is_finished:  # a stop string, which only the text shows
                    self.scheduler.finish(request, "stop")
                    finished.append(request)
                del self._streams[request.request_id]
        return deltas


def _raise(error: Exception) -> Never:
    raise error
