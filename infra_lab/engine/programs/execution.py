"""One run of a program: its thread, its branches, and the values it waits for.

NEW ── resume ──▶ RUNNING ── a value is missing ──▶ PAUSED ── it is there: resume ──▶ RUNNING
                     └── returned and all branches settled, or raised ──▶ ENDED
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Generic, TypeVar

from infra_lab.engine.programs.branch import Branch
from infra_lab.engine.programs.calls import Call
from infra_lab.engine.programs.fiber import Fiber, FiberCancelled
from infra_lab.engine.programs.operations import Variable
from infra_lab.engine.programs.results import ProgramStats
from infra_lab.errors import InvalidRequestError

R = TypeVar("R")


class Execution(Generic[R]):
    """The driver's view of a program that runs: resume it when it is ready, advance it, hand it the calls that are done."""

    def __init__(self, root: Branch, name: str) -> None:
        self.root = root
        self.stats = ProgramStats()
        self.value: R | None = None
        self.error: BaseException | None = None
        """What the program raised."""
        self.variables: Mapping[str, Variable] = {}
        """Those of the root."""
        self.body: Callable[[], R]
        """The program, with its arguments; set before the first `resume`."""
        self.branch_of: dict[Call, Branch] = {}
        """Its calls that are not done."""
        self._branches = [root]
        self._raised: list[Exception] = []
        self._is_there: Callable[[], bool] = lambda: True
        self._fiber = Fiber(self._run, name)

    # ---- for the driver ----

    @property
    def is_ready(self) -> bool:
        """Whether it can go on: it has not begun, or what it waits for is there."""
        return not self.has_ended and self._is_there()

    @property
    def has_ended(self) -> bool:
        """Whether the program has returned or raised."""
        return self._fiber.has_ended

    def resume(self) -> None:
        """Let the program run until it waits or ends."""
        self._fiber.resume()

    def cancel(self) -> None:
        """Have the program unwind, wherever it is."""
        self._fiber.cancel()

    def advance(self) -> list[Call]:
        """Do what its branches can do without the engine; return the new calls. A fork comes after its parent here."""
        calls = []
        for branch in self._branches:
            for call in branch.advance():
                self.branch_of[call] = branch
                calls.append(call)
        return calls

    def take(self, call: Call) -> None:
        """A call is done."""
        if call.request_id:
            self.stats.num_requests += 1
            self.stats.prompt_tokens += call.num_prompt_tokens
            self.stats.cached_tokens += call.num_cached_tokens
            self.stats.generated_tokens += call.num_generated_tokens
        self.branch_of.pop(call).take()

    # ---- for the program ----

    def check(self) -> None:
        """Raise InvalidRequestError if the program has ended, FiberCancelled if the run was given up."""
        if self.has_ended:
            raise InvalidRequestError("the program of this state has ended; nothing can be added to it")
        self._fiber.check()

    def fork(self, num_branches: int) -> list[Branch]:
        """Return branches that wait for their text."""
        branches = [Branch() for _ in range(num_branches)]
        self._branches += branches
        return branches

    def wait(self, is_there: Callable[[], bool]) -> None:
        """Return when `is_there` says so."""
        while not is_there():
            self._is_there = is_there
            self._fiber.pause()

    def settle(self, branches: Sequence[Branch]) -> None:
        """Wait until nothing is left to do in some branches; raise what has ended one of them."""
        self.wait(lambda: all(branch.is_settled for branch in branches))
        for branch in branches:
            if branch.error is not None:
                self.raise_error(branch.error)

    def raise_error(self, error: Exception) -> None:
        """Raise it in the program, and remember that the program knows of it."""
        self._raised.append(error)
        raise error

    def _run(self) -> None:
        try:
            self.value = self.body()
            self._settle_all()
        except FiberCancelled:
            pass
        except BaseException as error:  # noqa: BLE001 - it belongs to whoever runs the program
            self.error = error

    def _settle_all(self) -> None:
        """Wait for what the program did not wait for; an error that it has seen, and lived on, is its own affair."""
        self.wait(lambda: all(branch.is_settled for branch in self._branches))
        for branch in self._branches:
            if branch.error is not None and all(branch.error is not seen for seen in self._raised):
                raise branch.error
