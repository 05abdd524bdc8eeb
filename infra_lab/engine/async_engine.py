"""The engine for many callers at once: one thread steps, any number of coroutines read their streams.

      event loops                    engine thread
    submit() ──── inbox: add ──────▶ core.add
        ▲                            core.step, core.step, …
        └── deliver(delta), … ◀───── one hand-over a step and event loop
    abort() ───── inbox: abort ────▶ core.abort, before the next step

Only the engine thread touches the core; everything else goes through its inbox.
"""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from infra_lab.clock import Clock
from infra_lab.engine.build import build_engine
from infra_lab.engine.config import EngineConfig
from infra_lab.engine.core import EngineCore
from infra_lab.engine.outputs import OutputDelta
from infra_lab.engine.recorder import FlightRecorder
from infra_lab.errors import InfraLabError
from infra_lab.models.tokenizer import Tokenizer
from infra_lab.sampling_params import SamplingParams

T = TypeVar("T")
Deliver = Callable[[OutputDelta], None]
"""Takes a request's next delta, on the event loop that submitted it."""
logger = logging.getLogger(__name__)


class EngineClosedError(InfraLabError, RuntimeError):
    """The engine was shut down and takes no more requests."""


@dataclass(frozen=True, slots=True)
class Submitted:
    """A request on its way."""

    accepted: "asyncio.Future[str]"
    """Its id, once the engine has it. Raises InvalidRequestError or QueueFullError: then nothing is ever delivered."""
    abort: Callable[[], None]
    """Free its blocks before the next step, whatever has become of it; a delta that is on its way may still come."""


class AsyncEngine:
    """Runs an `EngineCore` on a thread of its own. Keyword arguments of `start` are the fields of `EngineConfig`."""

    def __init__(self, core: EngineCore) -> None:
        self.core = core
        self._inbox: deque[Callable[[], None]] = deque()
        self._wake = threading.Condition()
        self._outboxes: dict[str, tuple[asyncio.AbstractEventLoop, Deliver]] = {}
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="infra-lab-engine", daemon=True)
        self._thread.start()

    @classmethod
    def start(cls, model: str = "tiny", *, clock: Clock | None = None, **settings: Any) -> "AsyncEngine":
        """Load a model and start stepping."""
        return cls(build_engine(EngineConfig(model=model, **settings), clock).core)

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self.core.tokenizer

    @property
    def recorder(self) -> FlightRecorder:
        """What every step did."""
        return self.core.recorder

    async def generate(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        priority: int = 0,
        cache_salt: str = "",
    ) -> AsyncIterator[OutputDelta]:
        """Complete one prompt; yield what each step adds to its samples.

        Leaving the iterator early, or cancelling the task, aborts the request and frees its blocks before the next step.
        Raises InvalidRequestError, QueueFullError or EngineClosedError before the first delta.
        """
        params = await self.bound(params or SamplingParams())
        deltas: asyncio.Queue[OutputDelta] = asyncio.Queue()
        submitted = self.submit(
            prompt, params, deltas.put_nowait, request_id=request_id, priority=priority, cache_salt=cache_salt
        )
        num_open = params.n
        try:
            await submitted.accepted
            while num_open:
                delta = await deltas.get()
                num_open -= delta.finish_reason is not None
                yield delta
        finally:
            if num_open:
                submitted.abort()

    async def bound(self, params: SamplingParams) -> SamplingParams:
        """Return the parameters with their grammar compiled, which may take seconds, while the engine steps on.

        Raises InvalidRequestError for a grammar that is not valid, MissingExtraError without xgrammar.
        """
        return params if params.grammar is None else await asyncio.to_thread(self.core.grammars.bind, params)

    def submit(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams,
        deliver: Deliver,
        *,
        request_id: str | None = None,
        priority: int = 0,
        cache_salt: str = "",
    ) -> "Submitted":
        """Hand a prompt to the engine and return at once; `deliver` gets what each step adds to its samples.

        It is called on the running event loop, with no task in between: a server with hundreds of streams saves a switch
        a token. A grammar that has not been through `bound` is compiled between two steps. Raises EngineClosedError.
        """
        loop = asyncio.get_running_loop()
        token_ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        arrival_s = self.core.clock.now()

        def add() -> str:
            accepted = self.core.add(
                token_ids, params, request_id=request_id, priority=priority, cache_salt=cache_salt, arrival_s=arrival_s
            )
            self._outboxes[accepted] = (loop, deliver)
            return accepted

        future = self._submit(add)
        return Submitted(asyncio.wrap_future(future), lambda: self._abort_soon(future))

    async def abort(self, request_id: str) -> None:
        """End a request; its `generate` yields a last delta with finish_reason "abort"."""
        await asyncio.wrap_future(self._submit(lambda: self._hand_over(self.core.abort(request_id))))

    async def shutdown(self, *, drain: bool = True) -> None:
        """Take no more requests; finish those that run (or abort them), then stop the thread and free the memory."""
        if not drain:
            for request_id in list(self._outboxes):
                await self.abort(request_id)
        with self._wake:
            self._is_closing = True
            self._wake.notify()
        await asyncio.get_running_loop().run_in_executor(None, self._thread.join)
        self.core.executor.close()

    def _submit(self, command: Callable[[], T]) -> "Future[T]":
        """Have the engine thread run `command` between two steps."""
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():  # its caller has gone before anybody looked at it
                return
            try:
                future.set_result(command())
            except Exception as error:  # noqa: BLE001 - it belongs to the caller, who waits for the future
                future.set_exception(error)

        with self._wake:
            if self._is_closing:
                raise EngineClosedError("the engine is shut down; start a new one")
            self._inbox.append(run)
            self._wake.notify()
        return future

    def _abort_soon(self, accepting: "Future[str]") -> None:
        """Abort the request that `accepting` stands for, whether it was accepted, refused, or is still in the inbox."""
        if accepting.cancel():
            return

        def abort() -> None:
            if accepting.exception() is None:
                self.core.abort(accepting.result())
                self._outboxes.pop(accepting.result(), None)

        with self._wake:
            self._inbox.append(abort)
            self._wake.notify()

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._inbox and not self.core.has_work:
                    if self._is_closing:
                        return
                    self._wake.wait()
                if not self._inbox and (held_s := self.core.held_s):
                    self._wake.wait(held_s)
                    if not self._inbox:
                        self.core.clock.sleep(self.core.held_s)  # a virtual clock has stood still meanwhile
                commands = list(self._inbox)
                self._inbox.clear()
            for command in commands:
                command()
            try:
                deltas = self.core.step()
            except Exception as error:
                logger.exception("a step failed; its requests end with an error")
                deltas = self.core.failed(f"{type(error).__name__}: {error}")
            self._hand_over(deltas)

    def _hand_over(self, deltas: list[OutputDelta]) -> None:
        """Give a step's deltas to their callers, waking each event loop once."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Deliver, OutputDelta]]] = {}
        for delta in deltas:
            outbox = self._outboxes.get(delta.request_id)
            if outbox is None:  # its caller has gone
                continue
            by_loop.setdefault(outbox[0], []).append((outbox[1], delta))
        for request_id in {delta.request_id for delta in deltas if delta.finish_reason is not None}:
            if not self.core.is_open(request_id):
                self._outboxes.pop(request_id, None)
        for loop, pairs in by_loop.items():
            try:
                loop.call_soon_threadsafe(_deliver_all, pairs)
            except RuntimeError:  # the caller's event loop was closed: nobody reads any more
                for _, delta in pairs:
                    self.core.abort(delta.request_id)
                    self._outboxes.pop(delta.request_id, None)


def _deliver_all(pairs: list[tuple[Deliver, OutputDelta]]) -> None:
    for deliver, delta in pairs:
        try:
            deliver(delta)
        except Exception:
            logger.exception("a delta of %s was not taken", delta.request_id)  # the others still get theirs
