"""One line of a program: what is written, and the operations that are still to be done, one after the other."""

from collections import deque
from collections.abc import Sequence

from infra_lab.engine.programs.calls import Call
from infra_lab.engine.programs.operations import Operation
from infra_lab.engine.programs.transcript import Transcript
from infra_lab.errors import InfraLabError


class Branch:
    """A queue of operations. The program puts them in, the driver works them off."""

    def __init__(self, transcript: Transcript | None = None) -> None:
        self.transcript = transcript
        """None until the branch it comes from has got to the fork."""
        self.error: Exception | None = None
        """What ended it before its time."""
        self._operations: deque[Operation] = deque()
        self._calls: Sequence[Call] = ()
        """Of the first operation, once it is started."""
        self._num_open = 0

    @property
    def is_settled(self) -> bool:
        """Whether nothing is left to do, or nothing more will be done."""
        return self.error is not None or (self.transcript is not None and not self._operations)

    def push(self, operation: Operation) -> None:
        """Add an operation; on a branch that has failed, it fails."""
        if self.error is not None:
            operation.fail(self.error)
        else:
            self._operations.append(operation)

    def advance(self) -> Sequence[Call]:
        """Do what can be done without the engine; return the calls that it has to wait for, or waits for anew."""
        while self.transcript is not None and self._operations and not self._calls:
            try:
                self._calls = self._operations[0].start(self.transcript)
            except InfraLabError as error:
                self._fail_here(error)
                return ()
            if self._calls:
                self._num_open = len(self._calls)
                return self._calls
            self._operations.popleft()
        return ()

    def take(self) -> None:
        """One more call is done: if it was the last one of the operation, finish that."""
        self._num_open -= 1
        if self._num_open or self.transcript is None:
            return
        errors = [call.error for call in self._calls if call.error is not None]
        self._calls = ()
        if errors:
            self._fail_here(errors[0])
        else:
            self._operations.popleft().finish(self.transcript)

    def fail(self, error: Exception) -> None:
        """End it: nothing of what is left will be done."""
        self.error = error
        while self._operations:
            self._operations.popleft().fail(error)

    def _fail_here(self, error: Exception) -> None:
        error.add_note(f"in {self._operations[0].label}")
        self.fail(error)
