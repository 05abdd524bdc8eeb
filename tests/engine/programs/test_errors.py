"""What goes wrong stays with its program, is told with the program's own lines, and leaves nothing behind."""

import os
import signal
import threading
import time
import traceback
from typing import Any

import pytest

from infra_lab import LLM, SamplingParams
from infra_lab.engine.programs import State, program
from infra_lab.errors import InfraLabError, InvalidRequestError, InvariantError
from infra_lab.scheduler.plan import StepPlan, StepResult
from tests.engine.drained import assert_drained
from tests.engine.programs.engines import engine

GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 8}


@pytest.fixture
def llm() -> LLM:
    return engine()


def program_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name in ("fails", "busy", "waits", "stops")]


@program(**GREEDY)
def fails(s: State, at: int, number: int) -> None:
    s += f"Return {number}"
    for position in range(3):
        s.gen("part")
        for fork in s.fork(2):
            fork.gen("side")
        if position == at:
            raise ValueError(f"{s['part']!r} of {number} will not do")


def test_an_exception_comes_with_its_own_traceback(llm: LLM) -> None:
    with pytest.raises(ValueError, match="of 7 will not do") as caught:
        fails.run(llm, at=1, number=7)
    lines = traceback.extract_tb(caught.value.__traceback__)
    assert any(line.name == "fails" and "will not do" in (line.line or "") for line in lines)
    assert_drained(llm)
    assert not program_threads()


def test_the_others_of_a_batch_go_on(llm: LLM) -> None:
    alone = [fails.run(engine(), at=9, number=number).text for number in range(4)]
    runs = fails.run_batch(llm, [{"at": 1 if number == 2 else 9, "number": number} for number in range(4)])
    assert [type(run.error) for run in runs] == [type(None), type(None), ValueError, type(None)]
    assert [run.text for run in runs if run.error is None] == [text for i, text in enumerate(alone) if i != 2]
    assert runs[2]["part"] == runs[2].text[-8:], "as far as it had come"
    with pytest.raises(LookupError, match="there is no variable 'x'") as caught:
        runs[2]["x"]
    assert caught.value.__cause__ is runs[2].error
    assert_drained(llm)


def test_wrong_arguments_stop_a_batch_before_it_begins(llm: LLM) -> None:
    with pytest.raises(InvalidRequestError, match=r"fails: missing.*'number'.*are: at, number"):
        fails.run_batch(llm, [{"at": 9, "number": 1}, {"at": 9, "numbers": 1}])
    assert not llm.recorder.steps


def test_an_error_of_the_engine_is_raised_where_it_is_waited_for() -> None:
    llm = engine(max_model_len=32)
    reached = []

    @program(**GREEDY)
    def too_long(s: State, length: int) -> None:
        s += "x" * length
        s.gen("first", max_tokens=4)
        [fork] = s.fork(1)
        fork.gen("second")
        reached.append(length)
        fork["second"]
        reached.append(-length)

    runs = too_long.run_batch(llm, [{"length": 8}, {"length": 40}, {"length": 9}])
    assert [run.error is None for run in runs] == [True, False, True]
    assert sorted(reached) == [-9, -8, 8, 9, 40]
    error = runs[1].error
    assert isinstance(error, InvalidRequestError)
    assert error.__notes__ == ["in gen('first')"]
    assert any(line.name == "too_long" for line in traceback.extract_tb(error.__traceback__))
    assert_drained(llm)


def test_an_error_that_nobody_waited_for_is_raised_at_the_end() -> None:
    llm = engine(max_model_len=32)

    @program(**GREEDY)
    def unseen(s: State) -> None:
        s += "x" * 30
        for fork in s.fork(2):
            fork += "y" * 20
            fork.gen("too long")

    with pytest.raises(InvalidRequestError, match="the prompt has 50 tokens"):
        unseen.run(llm)


def test_a_program_may_live_on_after_an_error() -> None:
    llm = engine(max_model_len=32)

    @program(**GREEDY)
    def careful(s: State) -> str:
        s += "Return a"
        [risky] = s.fork(1)
        risky += "y" * 40
        risky.gen("tip")
        risky.select("choice", ["a", "b"])
        for attempt in (lambda: risky["tip"], lambda: risky["choice"], lambda: risky.text, lambda: s.join([risky])):
            with pytest.raises(InvalidRequestError, match="the prompt has 48 tokens"):
                attempt()
        s.gen("own")
        return s["own"]

    assert careful.run(llm).value == engine().generate("Return a", SamplingParams(**GREEDY))[0].text
    assert_drained(llm)


class _FailsOnce:
    """An executor whose step fails, once, when a request is in it."""

    def __init__(self, inner: Any, request_id: str, error: BaseException) -> None:
        self.inner, self.request_id, self.error = inner, request_id, error
        self.has_failed = False

    def execute(self, plan: StepPlan) -> StepResult:
        if not self.has_failed and any(chunk.request.request_id == self.request_id for chunk in plan.chunks):
            self.has_failed = True
            raise self.error
        result: StepResult = self.inner.execute(plan)
        return result

    def close(self) -> None:
        self.inner.close()


@program(**GREEDY)
def waits(s: State, number: int) -> None:
    s += f"Return {number} of"
    s.gen("a")
    s += s["a"]
    s.select("b", ["one", "two"])


@pytest.mark.parametrize("victim", ["request-1", "request-4"])  # a gen, and a choice
def test_a_failed_step_fails_its_programs_alone(llm: LLM, victim: str) -> None:
    llm.core.scheduler.config = type(llm.core.scheduler.config)(max_num_seqs=1, max_model_len=1024)
    expected = waits.run_batch(engine(), [{"number": number} for number in range(3)])
    cause = RuntimeError("the device is gone")
    llm.core.executor = _FailsOnce(llm.core.executor, victim, cause)
    runs = waits.run_batch(llm, [{"number": number} for number in range(3)])
    failed = [run for run in runs if run.error is not None]
    assert len(failed) == 1
    assert isinstance(failed[0].error, InfraLabError)
    assert "the device is gone" in str(failed[0].error)
    assert failed[0].error.__cause__ is cause
    assert [run.text for run in runs if run not in failed] == [
        run.text for run, other in zip(expected, runs, strict=True) if other not in failed
    ]
    assert_drained(llm)


def test_an_interrupt_in_a_step_ends_everything(llm: LLM) -> None:
    unwound = []

    @program(**GREEDY)
    def stops(s: State, number: int) -> None:
        s += f"Return {number}"
        s.gen("a")
        s.fork(2)[0].select("b", ["x", "yz"])
        try:
            s["a"]
        finally:
            unwound.append(number)

    llm.core.executor = _FailsOnce(llm.core.executor, "request-2", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        stops.run_batch(llm, [{"number": number} for number in range(5)])
    assert sorted(unwound) == [0, 1, 2, 3, 4]
    assert_drained(llm)
    assert not llm.core._streams
    assert not program_threads()
    assert stops.run(llm, number=1).error is None, "the engine, and the guard against two runs, are as before"


def test_ctrl_c_while_a_program_computes(llm: LLM) -> None:
    @program(**GREEDY)
    def busy(s: State) -> None:
        s += "Return a"
        s.fork(1)[0].gen("side")
        s.gen("a")
        s["a"]
        s.gen("b")
        os.kill(os.getpid(), signal.SIGINT)  # the caller's thread gets it
        while True:
            time.sleep(0.01)
            s += "x"

    with pytest.raises(KeyboardInterrupt):
        busy.run(llm)
    assert_drained(llm)
    assert not program_threads()


def test_a_program_that_exits_ends_the_batch(llm: LLM) -> None:
    @program(**GREEDY)
    def stops(s: State, number: int) -> None:
        s += f"Return {number}"
        s.gen("a")
        if s["a"] and number == 1:
            raise SystemExit(3)

    with pytest.raises(SystemExit, match="3"):
        stops.run_batch(llm, [{"number": number} for number in range(3)])
    assert_drained(llm)
    assert not program_threads()


def test_a_run_inside_a_run_is_refused(llm: LLM) -> None:
    @program
    def outer(s: State) -> None:
        s += "x"
        fails.run(llm, at=1, number=1)

    with pytest.raises(InvalidRequestError, match=r"other\(s"):
        outer.run(llm)
    assert_drained(llm)


def test_a_step_by_somebody_else_is_noticed(llm: LLM) -> None:
    @program(**GREEDY)
    def stepping(s: State) -> None:
        s += "Return a"
        first, second = s.fork(2)
        first.gen("a", max_tokens=2)
        second += " b"
        second.gen("b")
        assert first["a"]
        while llm.core.has_work:
            llm.core.step()
        s += second["b"]

    with pytest.raises(InvariantError, match="nothing else may step it"):
        stepping.run(llm)
    assert_drained(llm)


def test_only_the_program_waits(llm: LLM) -> None:
    caught: list[Exception] = []

    @program(**GREEDY)
    def threaded(s: State) -> None:
        s += "Return a"
        s.gen("a")

        def read() -> None:
            try:
                s["a"]
            except InvalidRequestError as error:
                caught.append(error)

        thread = threading.Thread(target=read)
        thread.start()
        thread.join()

    threaded.run(llm)
    assert "only the program itself" in str(caught[0])
