"""One HTTP request's work in the engine, from its acceptance to its last token, its error, or its client's leaving.

                     cut(error): deadline, client gone, slow reader, shutdown, an error of the engine
                       │
engine ──a delta──▶ mailbox, on the event loop, by a plain call ──▶ take() ──▶ the response
                       │
                     aborted: the engine frees the blocks before its next step
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from infra_lab.engine.async_engine import Submitted
from infra_lab.engine.outputs import OutputDelta, RequestMetrics
from infra_lab.server.api_error import CLIENT_GONE, ApiError, from_exception
from infra_lab.server.job import Job
from infra_lab.server.mailbox import Mailbox, Piece
from infra_lab.server.served import ServedEngine

_LONG_S = 3600.0
_NO_RETRY = {"x-should-retry": "false"}
"""OpenAI's clients send a 408 again, twice: a job that was too much for its limit would be three."""
logger = logging.getLogger(__name__)
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


class Observer(Protocol):
    """Is told of every delta (metrics are)."""

    def saw(self, delta: OutputDelta, previous_token_s: float | None, new_preemptions: int) -> None:
        """A sample got `delta`; its token before that came at `previous_token_s`."""
        ...


@dataclass(slots=True)
class Progress:
    """How far one choice has come."""

    metrics: RequestMetrics | None = None
    num_tokens: int = 0
    num_preemptions: int = 0
    last_token_s: float | None = None
    finish_reason: str | None = None


class Generation:
    """Runs a job. Made on the event loop; `close` must be called, and may be called again."""

    def __init__(
        self, served: ServedEngine, job: Job, *, request_id: str, observer: Observer, max_buffered_bytes: int | None
    ) -> None:
        self.job = job
        self.request_id = request_id
        self.choices = [Progress() for _ in range(job.num_choices)]
        self.error: ApiError | None = None
        self.is_refused = False
        """Whether the engine did not take it (or one of its prompts)."""
        self._served, self._observer, self._max_buffered_bytes = served, observer, max_buffered_bytes
        self._mailbox = Mailbox(job.chunking)
        self._loop = asyncio.get_running_loop()
        self._num_open = job.num_choices
        self._waiter: asyncio.Future[None] | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._submitted: list[Submitted] = []
        try:
            for index in range(len(job.prompts)):
                self._submitted.append(self._submit(index))
        except BaseException:
            self._stop()
            raise
        if job.timeout_s is not None:
            self._deadline = self._loop.call_later(job.timeout_s, self.cut, _timed_out(job.timeout_s))

    # ---- what came of it ----

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come into the mailbox."""
        return self.error is not None or self._num_open == 0

    @property
    def num_output_tokens(self) -> int:
        """Generated so far, over all choices."""
        return sum(choice.num_tokens for choice in self.choices)

    @property
    def num_cached_tokens(self) -> int:
        """Prompt tokens that the prefix cache had; each prompt counts once, however many samples it has."""
        firsts = self.choices[:: self.job.params.n]
        return sum(choice.metrics.num_cached_tokens for choice in firsts if choice.metrics is not None)

    @property
    def ttft_s(self) -> float | None:
        """Until the first token of any choice."""
        times = [choice.metrics.ttft_s for choice in self.choices if choice.metrics is not None]
        return min((time for time in times if time is not None), default=None)

    def usage(self) -> dict[str, Any]:
        """The usage object of OpenAI's API."""
        prompt, output = self.job.num_prompt_tokens, self.num_output_tokens
        return {
            "prompt_tokens": prompt,
            "completion_tokens": output,
            "total_tokens": prompt + output,
            "prompt_tokens_details": {"cached_tokens": self.num_cached_tokens},
        }

    # ---- the client's side ----

    async def take(self, timeout_s: float) -> list[Piece]:
        """Return the pieces that are ready, waiting for one; an empty list after `timeout_s`, or when all is over.

        Raises ApiError if the job was cut off, once what was generated before has been taken.
        """
        await self.opened(timeout_s)
        pieces = self._mailbox.take(self._loop.time(), everything=self.is_over)
        if not pieces and self.error is not None:
            raise self.error
        return pieces

    async def opened(self, timeout_s: float) -> None:
        """Wait until `take` would return something, or raise; or for `timeout_s`."""
        now_s = self._loop.time()
        end_s = now_s + timeout_s
        while not (self.is_over or self._mailbox.has_ready(now_s)):
            due_s = self._mailbox.due_s()
            self._look_again_by(end_s if due_s is None else min(due_s, end_s))
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
            now_s = self._loop.time()
            if now_s >= end_s:
                break

    async def collect(self) -> list[Piece]:
        """Wait for the end; return one piece a choice, in order. Raises ApiError if the job was cut off.

        The job's chunking must be WHOLE: then a choice is one piece, ready when it ends.
        """
        whole: list[Piece] = []
        while len(whole) < self.job.num_choices:
            whole += await self.take(_LONG_S)
            if self.error is not None:
                raise self.error
        return sorted(whole, key=lambda piece: piece.index)

    def watch(self, receive: Receive) -> None:
        """Cut the job off when the client disconnects, as `receive` will say once the body is read."""

        async def wait_for_disconnect() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            self.cut(
                ApiError(CLIENT_GONE, "the client closed the connection", kind="client_closed", code="client_gone")
            )

        self._watcher = self._loop.create_task(wait_for_disconnect())

    # ---- its end ----

    def cut(self, error: ApiError) -> None:
        """End the job with an error; the engine drops it before its next step. Nothing happens if it is over."""
        if self.is_over:
            return
        self.error = error
        self._stop()
        self._wake()

    def close(self) -> None:
        """Give up what is still running."""
        if not self.is_over:
            self.error = ApiError(500, "the response ended early", kind="server_error", code="internal_error")
        self._stop()

    def _stop(self) -> None:
        for timer in (self._deadline, self._alarm):
            if timer is not None:
                timer.cancel()
        if self._watcher is not None and self._watcher is not asyncio.current_task():
            self._watcher.cancel()
        submitted, self._submitted = self._submitted, []
        if self._num_open:
            for request in submitted:
                request.abort()

    # ---- the engine's side ----

    def _submit(self, prompt_index: int) -> Submitted:
        job = self.job
        submitted = self._served.engine.submit(
            job.prompts[prompt_index],
            job.params,
            partial(self._put, prompt_index * job.params.n),
            request_id=f"{self.request_id}-{prompt_index}",
            priority=job.priority,
            cache_salt=job.cache_salt,
        )
        submitted.accepted.add_done_callback(self._answered)
        return submitted

    def _answered(self, accepted: asyncio.Future[str]) -> None:
        refusal = None if accepted.cancelled() else accepted.exception()
        if not isinstance(refusal, Exception):
            return
        answer = from_exception(refusal)
        if answer.status == 500:
            logger.error("%s failed", self.request_id, exc_info=refusal)
        elif not self.is_over:
            self.is_refused = True
        self.cut(answer)

    def _put(self, first_choice: int, delta: OutputDelta) -> None:
        if self.error is not None:
            return
        index = first_choice + delta.index
        choice = self.choices[index]
        metrics = choice.metrics = delta.metrics
        self._observer.saw(delta, choice.last_token_s, metrics.num_preemptions - choice.num_preemptions)
        choice.num_tokens += len(delta.token_ids)
        choice.num_preemptions, choice.last_token_s = metrics.num_preemptions, metrics.last_token_s
        if delta.finish_reason in ("error", "abort"):
            self.cut(_failed(delta))
            return
        if self._mailbox.put(index, delta, self._loop.time()):
            self._wake()
        if delta.finish_reason is not None:
            choice.finish_reason = delta.finish_reason
            self._num_open -= 1
        elif self._max_buffered_bytes is not None and self._mailbox.num_bytes > self._max_buffered_bytes:
            self.cut(_too_slow(self._max_buffered_bytes))

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _look_again_by(self, when_s: float) -> None:
        """One timer for all waits: it is set anew only if it would ring too late, and ringing too early does no harm."""
        if self._alarm is not None:
            if self._alarm.when() <= when_s:
                return
            self._alarm.cancel()
        self._alarm = self._loop.call_at(when_s, self._ring)

    def _ring(self) -> None:
        self._alarm = None
        self._wake()


def _timed_out(timeout_s: float) -> ApiError:
    return ApiError(
        408,
        f"the request was not done after {timeout_s:g} s, its time limit",
        kind="timeout_error",
        code="timeout",
        headers=_NO_RETRY,
    )


def _too_slow(max_bytes: int) -> ApiError:
    return ApiError(
        408,
        f"the client reads too slowly: more than {max_bytes} bytes wait for it",
        kind="timeout_error",
        code="slow_reader",
        headers=_NO_RETRY,
    )


def _failed(delta: OutputDelta) -> ApiError:
    if delta.finish_reason == "abort":
        return ApiError(503, "the engine gave the request up; try again", kind="service_unavailable", code="aborted")
    return ApiError(500, f"the engine failed on this request: {delta.error}", kind="server_error", code="engine_error")
