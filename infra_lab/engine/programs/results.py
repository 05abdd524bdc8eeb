"""What a program leaves behind: its text, its variables, and what they cost."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

from infra_lab.engine.outputs import SampleOutput
from infra_lab.errors import InfraLabError

R = TypeVar("R")


class UnknownVariableError(InfraLabError, LookupError):
    """A variable that no `gen` or `select` of the program has made."""


class Selection(NamedTuple):
    """What `select` chose, and how all choices were judged, in their order."""

    text: str
    """The choice with the highest score; of equal ones the first."""
    token_ids: list[int]
    logprobs: dict[str, float]
    """log p(choice | text before it), by the model's own distribution: the sum over its tokens."""
    scores: dict[str, float]
    """What they were ranked by: `logprobs`, or the same divided by the number of tokens."""


Output = SampleOutput | Selection


@dataclass(slots=True)
class ProgramStats:
    """What a program cost. Every `gen`, and every choice of a `select`, is one request."""

    num_requests: int = 0
    num_steps: int = 0
    """Steps of the engine in which something of the program was computed."""
    prompt_tokens: int = 0
    """Sent to the engine, over all requests; a choice counts with all its tokens but the last, which is only predicted."""
    cached_tokens: int = 0
    """Of these, found in the prefix cache."""
    generated_tokens: int = 0

    @property
    def computed_tokens(self) -> int:
        """Prompt tokens that the model had to compute (what a preemption made it repeat is not counted)."""
        return self.prompt_tokens - self.cached_tokens

    @property
    def cached_share(self) -> float:
        """Share of the prompt tokens that the prefix cache saved."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0


@dataclass(frozen=True, slots=True)
class ProgramRun(Generic[R]):
    """One run of a program. `run["name"]` is the text of a variable."""

    text: str
    """All that was written and generated, branches left out; no special tokens of the model's own making."""
    token_ids: list[int]
    """The same as it would be sent to the engine."""
    outputs: Mapping[str, Output]
    """By variable: a `SampleOutput` of `gen`, a `Selection` of `select`."""
    stats: ProgramStats
    value: R | None = None
    """What the program returned."""
    error: Exception | None = field(default=None)
    """What stopped it; the rest is as far as it had come."""

    def __getitem__(self, name: str) -> str:
        """Text of a variable. Raises UnknownVariableError, with the program's error as its cause if there was one."""
        if name not in self.outputs:
            raise unknown_variable(name, self.outputs) from self.error
        return self.outputs[name].text


def unknown_variable(name: str, known: Iterable[str]) -> UnknownVariableError:
    """Return the error that names the variables there are."""
    names = ", ".join(repr(other) for other in sorted(known)) or "none"
    return UnknownVariableError(
        f"there is no variable {name!r}; those made so far: {names}. "
        "A variable is made by gen(name, ...) or select(name, ...), and a fork's variables are read from the fork"
    )
