"""Runs programs on an engine: lets each run until it waits for a value, and steps the engine until a value is there."""

from collections import deque
from collections.abc import Sequence
from typing import Any
from weakref import WeakSet

from infra_lab.engine.core import EngineCore
from infra_lab.engine.outputs import OutputDelta
from infra_lab.engine.programs.calls import Call
from infra_lab.engine.programs.execution import Execution
from infra_lab.engine.programs.prefix_gate import PrefixGate
from infra_lab.errors import InfraLabError, InvalidRequestError, InvariantError, QueueFullError

_DRIVEN: "WeakSet[EngineCore]" = WeakSet()


class Driver:
    """Everything that touches the engine, on the thread that calls `run`."""

    def __init__(self, core: EngineCore) -> None:
        self._core = core
        self._gate = PrefixGate(core.scheduler.blocks)
        self._waiting: list[Call] = []
        self._open: dict[str, Call] = {}
        self._execution_of: dict[Call, Execution[Any]] = {}

    def run(self, executions: Sequence[Execution[Any]], max_parallel: int) -> None:
        """Run programs to their ends, at most `max_parallel` at a time.

        A program's error stays with it. What ends the run as a whole (Ctrl-C, a fault of the engine) is raised when all
        programs have been unwound and all their requests aborted.

        Raises InvalidRequestError if programs run on this engine already.
        """
        if self._core in _DRIVEN:
            raise InvalidRequestError(
                "programs run on this engine already; inside a program call another one with its state: other(s, ...)"
            )
        _DRIVEN.add(self._core)
        try:
            with self._core.without_overlap():  # a choice goes on from what the latest step has computed
                self._run(executions, max_parallel)
        finally:
            for execution in executions:
                self._drop_calls(execution)
            for execution in executions:
                execution.cancel()
            _DRIVEN.discard(self._core)

    def _run(self, executions: Sequence[Execution[Any]], max_parallel: int) -> None:
        todo, live = deque(executions), list[Execution[Any]]()
        while todo or live:
            while todo and len(live) < max_parallel:
                live.append(todo.popleft())
            ready = [execution for execution in live if execution.is_ready]
            for execution in ready:
                self._resume(execution)
            if not ready:
                self._step()
            live = [execution for execution in live if not execution.has_ended]

    def _resume(self, execution: Execution[Any]) -> None:
        execution.resume()
        if execution.has_ended:
            self._drop_calls(execution)
            if execution.error is not None and not isinstance(execution.error, Exception):
                raise execution.error
        else:
            self._advance(execution)

    def _advance(self, execution: Execution[Any]) -> None:
        for call in execution.advance():
            self._execution_of[call] = execution
            self._waiting.append(call)

    def _step(self) -> None:
        """Submit what may be submitted, run one step, and hand out what it brought."""
        core = self._core
        self._submit()
        if core.has_work:
            deltas = self._deltas()
            for delta in deltas:
                if delta.request_id in self._open:
                    self._open[delta.request_id].take_delta(delta)
            self._take_results()
            if held_s := core.held_s:
                core.clock.sleep(held_s)
        elif not any(call.is_done for call in self._execution_of):
            raise InvariantError(
                f"{len(self._execution_of)} calls of programs wait, and the engine has no work; nothing else may step it "
                "while programs run"
            )
        for call in [call for call in self._execution_of if call.is_done]:
            self._close(call)

    def _submit(self) -> None:
        for call in self._gate.passing(self._waiting, self._open.values()):
            try:
                call.submit(self._core)
            except QueueFullError as error:
                if self._core.has_work:  # room will come
                    return
                call.fail(error)
            except InfraLabError as error:
                call.fail(error)
            else:
                self._open[call.request_id] = call
            self._waiting.remove(call)

    def _deltas(self) -> list[OutputDelta]:
        """Run a step; if it fails, so do its requests, and the others go on."""
        try:
            return self._core.step()
        except Exception as error:
            message = f"{type(error).__name__}: {error}"
            for delta in self._core.failed(message):
                if delta.request_id in self._open:
                    self._open[delta.request_id].take_delta(delta)
            failed = False
            for call in self._open.values():
                call.take_failure(message)
                if call.error is not None:
                    call.error.__cause__ = error
                    failed = True
            if not failed:  # no program can tell of it
                raise
            return []

    def _take_results(self) -> None:
        if self._core.last_step is None:
            return
        plan, result = self._core.last_step
        seen: set[Execution[Any]] = set()
        for position, chunk in enumerate(plan.chunks):
            call = self._open.get(chunk.request.request_id)
            if call is not None:
                seen.add(self._execution_of[call])
                call.take_result(self._core, chunk.request, position, result)
        for execution in seen:
            execution.stats.num_steps += 1

    def _close(self, call: Call) -> None:
        """A call is done: its branch goes on."""
        self._open.pop(call.request_id, None)
        execution = self._execution_of.pop(call)
        execution.take(call)
        self._advance(execution)

    def _drop_calls(self, execution: Execution[Any]) -> None:
        """Nobody waits for these any more."""
        for call in execution.branch_of:
            if call.request_id in self._open:
                call.abort(self._core)
                del self._open[call.request_id]
            elif call in self._waiting:
                self._waiting.remove(call)
            self._execution_of.pop(call, None)
        execution.branch_of.clear()
