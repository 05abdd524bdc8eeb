"""`@program`: a Python function becomes a prompt program, to be run once or many times at once."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import update_wrapper
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from infra_lab.engine.llm import LLM
from infra_lab.engine.programs.branch import Branch
from infra_lab.engine.programs.driver import Driver
from infra_lab.engine.programs.execution import Execution
from infra_lab.engine.programs.parameters import sampling_params
from infra_lab.engine.programs.results import ProgramRun
from infra_lab.engine.programs.state import State, Tools
from infra_lab.engine.programs.transcript import Transcript
from infra_lab.errors import InvalidRequestError

P = ParamSpec("P")
R = TypeVar("R")
MAX_PARALLEL = 256
"""Each program that runs has a thread of its own."""


class Program(Generic[P, R]):
    """A function whose first argument is a `State`. Called with one, it is part of the program that the state belongs to."""

    def __init__(self, function: Callable[Concatenate[State, P], R], options: Mapping[str, Any]) -> None:
        sampling_params(options)
        self._function, self._options = function, dict(options)
        self._signature = inspect.signature(function)
        self._name = getattr(function, "__name__", "program")
        if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
            raise InvalidRequestError(f"{self._name} is a coroutine or a generator; a program is a plain function")
        if not self._signature.parameters:
            raise InvalidRequestError(f"{self._name} has no parameters; the first one of a program is its State")
        update_wrapper(self, function)

    def __call__(self, state: State, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the function on a state of another program, with its own defaults for `gen` over that program's."""
        outer = state.options
        state.options = {**outer, **self._options}
        try:
            return self._function(state, *args, **kwargs)
        finally:
            state.options = outer

    def run(self, llm: LLM, /, *args: P.args, **kwargs: P.kwargs) -> ProgramRun[R]:
        """Run the program once.

        What it raises is raised here, with its own traceback, when its requests have been aborted. Other requests of the
        engine go on meanwhile; what they emit is not returned here. Ctrl-C ends the program where it waits; code of its own
        that computes or sleeps goes on to its next call of the state.
        """
        execution = self._execution(llm, self._bound(args, kwargs))
        Driver(llm.core).run([execution], 1)
        if execution.error is not None:
            raise execution.error
        return _result(execution)

    def run_batch(
        self, llm: LLM, arguments: Sequence[Mapping[str, Any]], /, *, max_parallel: int = MAX_PARALLEL
    ) -> list[ProgramRun[R]]:
        """Run the program once for each set of arguments, all of them in one continuous batch; runs are in their order.

        A program that raises does not disturb the others: its run has an `error`. At most `max_parallel` run at a time.
        Raises InvalidRequestError, before anything runs, for arguments that do not fit.
        """
        if max_parallel < 1:
            raise InvalidRequestError(f"max_parallel is {max_parallel}; it must be at least 1")
        executions = [self._execution(llm, bound) for bound in [self._bound((), kwargs) for kwargs in arguments]]
        Driver(llm.core).run(executions, max_parallel)
        return [_result(execution) for execution in executions]

    def _bound(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> inspect.BoundArguments:
        try:
            return self._signature.bind(None, *args, **kwargs)
        except TypeError as error:
            names = ", ".join(list(self._signature.parameters)[1:]) or "none"
            raise InvalidRequestError(f"{self._name}: {error}; its arguments, after the state, are: {names}") from None

    def _execution(self, llm: LLM, bound: inspect.BoundArguments) -> Execution[R]:
        execution: Execution[R] = Execution(Branch(Transcript(llm.tokenizer)), self._name)
        state = State(execution, execution.root, Tools(llm.tokenizer, llm.core.grammars.bind), self._options)
        execution.body = lambda: self._function(state, *bound.args[1:], **bound.kwargs)
        execution.variables = state.variables
        return execution


@overload
def program(function: Callable[Concatenate[State, P], R], /) -> Program[P, R]: ...
@overload
def program(**options: Any) -> Callable[[Callable[Concatenate[State, P], R]], Program[P, R]]: ...
def program(function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Make a program of a function; `@program(temperature=0.0, max_tokens=32)` sets the defaults of its `gen`s.

    Raises InvalidRequestError for an option that `gen` does not have, and for what is no plain function of a state.
    """
    if function is None:
        return lambda function: Program(function, options)
    return Program(function, options)


def _result(execution: Execution[R]) -> ProgramRun[R]:
    transcript = execution.root.transcript
    assert transcript is not None, "the root has its text from the beginning"
    outputs = {name: v.output for name, v in execution.variables.items() if v.output is not None}
    error = execution.error if isinstance(execution.error, Exception) else None
    return ProgramRun(transcript.text, transcript.tokens(), outputs, execution.stats, execution.value, error)
