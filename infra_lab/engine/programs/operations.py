"""What a branch has still to do: each operation reads what was written before it, and writes its own part."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from infra_lab.engine.programs.calls import Call, GenerateCall
from infra_lab.engine.programs.choice_call import ChoiceCall
from infra_lab.engine.programs.results import Output, Selection
from infra_lab.engine.programs.transcript import Transcript
from infra_lab.sampling_params import SamplingParams

if TYPE_CHECKING:
    from infra_lab.engine.programs.branch import Branch


@dataclass(slots=True, eq=False)
class Variable:
    """A value that is on its way, or there, or will never come."""

    output: Output | None = None
    error: Exception | None = None

    @property
    def is_settled(self) -> bool:
        """Whether waiting for it is over."""
        return self.output is not None or self.error is not None


class Operation(ABC):
    """`start` when all before it is done, `finish` when its calls are; or `fail`, once, instead of either."""

    label = "text"
    """What the program called, for messages."""

    @abstractmethod
    def start(self, transcript: Transcript) -> Sequence[Call]:
        """Return the calls to wait for; without any it is done. Raises InvalidRequestError."""

    def finish(self, transcript: Transcript) -> None:  # noqa: B027 - those without calls have nothing to do here
        """Write what the calls brought."""

    def fail(self, error: Exception) -> None:  # noqa: B027 - not all have somebody to tell
        """Tell whoever waits for it that it will not be done."""


@dataclass(slots=True, eq=False)
class Write(Operation):
    """Append text."""

    text: str
    is_template: bool = False

    def start(self, transcript: Transcript) -> Sequence[Call]:
        """See `Operation`."""
        transcript.write(self.text, is_template=self.is_template)
        return ()


class Generate(Operation):
    """Have the model go on."""

    def __init__(self, label: str, params: SamplingParams) -> None:
        self.label = label
        self.variable = Variable()
        self._params = params
        self._call: GenerateCall

    def start(self, transcript: Transcript) -> Sequence[Call]:
        """See `Operation`."""
        self._call = GenerateCall(transcript.tokens(), self._params)
        return (self._call,)

    def finish(self, transcript: Transcript) -> None:
        """See `Operation`."""
        transcript.take(self._call.sample, includes_stop=self._params.include_stop)
        self.variable.output = self._call.sample

    def fail(self, error: Exception) -> None:
        """See `Operation`."""
        self.variable.error = error


class Select(Operation):
    """Append the most likely of several texts."""

    def __init__(self, label: str, choices: dict[str, list[int]], *, normalize: bool) -> None:
        self.label = label
        self.variable = Variable()
        self._choices = choices
        self._normalize = normalize
        self._calls: list[ChoiceCall] = []

    def start(self, transcript: Transcript) -> Sequence[Call]:
        """See `Operation`."""
        prompt = transcript.tokens()
        self._calls = [ChoiceCall(prompt, token_ids) for token_ids in self._choices.values()]
        return self._calls

    def finish(self, transcript: Transcript) -> None:
        """See `Operation`."""
        logprobs = {text: call.logprob for text, call in zip(self._choices, self._calls, strict=True)}
        scores = {text: logprobs[text] / (len(ids) if self._normalize else 1) for text, ids in self._choices.items()}
        best = max(scores, key=scores.__getitem__)
        transcript.append(best, self._choices[best])
        self.variable.output = Selection(best, self._choices[best], logprobs, scores)

    def fail(self, error: Exception) -> None:
        """See `Operation`."""
        self.variable.error = error


class Fork(Operation):
    """Let other branches go on from here."""

    label = "fork"

    def __init__(self, children: "Sequence[Branch]") -> None:
        self._children = children

    def start(self, transcript: Transcript) -> Sequence[Call]:
        """See `Operation`."""
        for child in self._children:
            child.transcript = transcript.copy()
        return ()

    def fail(self, error: Exception) -> None:
        """See `Operation`."""
        for child in self._children:
            child.fail(error)
