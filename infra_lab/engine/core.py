"""The step loop: schedule, execute, update, hand out. One thread at a time; `LLM` and `AsyncEngine` drive it."""

import secrets
from collections.abc import Sequence
from itertools import count

from infra_lab.clock import Clock
from infra_lab.engine.output_stream import OutputStream
from infra_lab.engine.outputs import OutputDelta
from infra_lab.engine.recorder import FlightRecorder
from infra_lab.engine.sampling import GrammarCompiler, validate
from infra_lab.errors import InvalidRequestError
from infra_lab.models.tokenizer import Tokenizer
from infra_lab.sampling_params import SamplingParams
from infra_lab.scheduler.plan import NO_TOKEN, Executor, StepPlan, StepResult
from infra_lab.scheduler.request import Request
from infra_lab.scheduler.scheduler import Scheduler


class EngineCore:
    """A scheduler, an executor and the streams of the requests between them."""

    def __init__(
        self, scheduler: Scheduler, executor: Executor, tokenizer: Tokenizer, *, vocab_size: int, clock: Clock
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

    @property
    def has_work(self) -> bool:
        """Whether a request runs or waits."""
        return self.scheduler.has_work

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
        plan = self.scheduler.schedule(start_s)
        scheduled_s = self.clock.now()
        if plan.is_empty:
            return []
        try:
            result = self.executor.execute(plan)
        except BaseException:
            # The plan's copies may be undone and its blocks half-written: none of its requests can go on.
            for chunk in plan.chunks:
                if not chunk.request.is_finished:
                    self.scheduler.finish(chunk.request, "error")
            raise
        self.last_step = (plan, result)
        executed_s = self.clock.now()
        finished = self.scheduler.update(plan, result)
        updated_s = self.clock.now()
        deltas = self._emit(plan, result, finished, start_s, updated_s)
        end_s = self.clock.now()
        timings_s = {
            "schedule": scheduled_s - start_s,
            **result.timings_s,
            "update": updated_s - executed_s,
            "output": end_s - updated_s,
        }
        self.recorder.record(
            plan, result, finished, self.scheduler, start_s=start_s, duration_s=end_s - start_s, timings_s=timings_s
        )
        return deltas

    @property
    def held_s(self) -> float:
        """Seconds until the policy lets a batch start that waits for others to join it; 0: step now."""
        held_until_s = self.scheduler.held_until_s
        return 0.0 if held_until_s is None else max(0.0, held_until_s - self.clock.now())

    def failed(self, message: str) -> list[OutputDelta]:
        """The last deltas of requests that ended without a word of their own: after `step` raised, for one."""
        members = [key for key, stream in self._streams.items() if stream.request.is_finished]
        return [self._streams.pop(key).end(message) for key in members]

    def _emit(
        self, plan: StepPlan, result: StepResult, finished: list[Request], start_s: float, now_s: float
    ) -> list[OutputDelta]:
        deltas = []
        for position, (chunk, token_id) in enumerate(zip(plan.chunks, result.token_ids, strict=True)):
            request = chunk.request
            stream = self._streams.get(request.request_id)
            if stream is None:  # aborted while the step ran
                continue
            if stream.metrics.first_scheduled_s is None:
                stream.metrics.first_scheduled_s = start_s
            if position in result.errors:
                deltas += self.failed(result.errors[position])
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
