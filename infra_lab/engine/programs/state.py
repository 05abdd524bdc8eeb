"""What a program writes on: text, generations, choices, forks and messages of a chat."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Self

from infra_lab.engine.programs.branch import Branch
from infra_lab.engine.programs.chat import Chat
from infra_lab.engine.programs.execution import Execution
from infra_lab.engine.programs.operations import Fork, Generate, Operation, Select, Variable, Write
from infra_lab.engine.programs.parameters import sampling_params
from infra_lab.engine.programs.results import unknown_variable
from infra_lab.errors import InvalidRequestError
from infra_lab.models.tokenizer import Tokenizer
from infra_lab.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True)
class Tools:
    """What a state has of the engine: nothing that changes while it runs."""

    tokenizer: Tokenizer
    bind: Callable[[SamplingParams], SamplingParams]
    """Compiles a grammar."""


class State:
    """A text that grows, and the variables in it. A program gets one as its first argument, and more from `fork`.

    `s["name"]`, `s.text` and `s.join` wait until what they ask for is there; all else returns at once.

    What goes wrong at the engine is raised where the program waits for it (a note says in which call), and at the latest at
    the program's end. Wrong arguments are InvalidRequestErrors right away.
    """

    def __init__(self, execution: Execution[Any], branch: Branch, tools: Tools, options: Mapping[str, Any]) -> None:
        self.options = options
        """Defaults of `gen`, fields of `SamplingParams`."""
        self._execution, self._branch, self._tools = execution, branch, tools
        self._chat = Chat(tools.tokenizer)
        self.variables: dict[str, Variable] = {}
        """By name, those that are on their way included. A fork begins with its parent's."""

    # ---- text ----

    def __iadd__(self, text: str) -> Self:
        """Append text (`s += "..."`). What comes between two generations is tokenized as one segment (`Transcript`).

        Special tokens written in it are special tokens: filter what others have written before.
        """
        if not isinstance(text, str):
            raise InvalidRequestError(f"what is added to a program's text is a {type(text).__name__}; expected str")
        if not _is_unicode(text):
            raise InvalidRequestError("the text holds half a surrogate pair; decode its source with errors='replace'")
        self._push(Write(text))
        return self

    def role(self, name: str, text: str | None = None) -> AbstractContextManager[None]:
        """Write a message in the model's chat format: all of it, or what is written inside `with s.role(name):`.

        The content is written as it is, even where the template would strip blanks. Raises what `Chat.open` does.
        """
        if text is None:
            return self._message(name)
        with self._message(name):
            self += text
        return nullcontext()

    def system(self, text: str | None = None) -> AbstractContextManager[None]:
        """Write a system message; see `role`."""
        return self.role("system", text)

    def user(self, text: str | None = None) -> AbstractContextManager[None]:
        """Write a user's message; see `role`."""
        return self.role("user", text)

    def assistant(self, text: str | None = None) -> AbstractContextManager[None]:
        """Write an assistant's message, usually `with s.assistant():` around a `gen`; see `role`."""
        return self.role("assistant", text)

    # ---- the model ----

    def gen(
        self,
        name: str | None = None,
        *,
        regex: str | None = None,
        json_schema: Mapping[str, Any] | str | None = None,
        **options: Any,
    ) -> None:
        """Have the model go on, and keep what it wrote as a variable.

        options: fields of `SamplingParams` (max_tokens, stop, temperature, ...), over the program's own; regex, json_schema:
        what all of it must look like (needs xgrammar). A stop string, or the token that ended it, is not part of the text.

        Raises InvalidRequestError for an option or a grammar that is not valid, MissingExtraError without xgrammar.
        """
        params = sampling_params({**self.options, **options}, regex=regex, json_schema=json_schema)
        operation = Generate(f"gen({'' if name is None else repr(name)})", self._tools.bind(params))
        self._push(operation)
        self._keep(name, operation.variable)

    def select(self, name: str | None, choices: Sequence[str], *, normalize: bool = True) -> None:
        """Append the choice that the model finds most likely here, and keep it as a variable.

        The score of a choice is the mean log-probability of its tokens (SGLang's `token_length_normalized`), so that a long
        one is not at a disadvantage; without `normalize` it is the sum, the log-likelihood of the whole. All choices are
        scored side by side, as segments of their own, with nothing sampled: the best one wins even where its first token is
        not the most likely. In most vocabularies a word's token has the blank before it: end the text without one, and let
        the choices begin with it (" yes").

        Raises InvalidRequestError unless the choices are different texts, each with at least one token.
        """
        if isinstance(choices, str) or not choices or len(set(choices)) != len(choices):
            raise InvalidRequestError(f"choices is {choices!r}; expected a list of different texts, at least one")
        tokens = {text: self._tools.tokenizer.encode(text, add_special_tokens=False) for text in choices}
        if not all(tokens.values()):
            raise InvalidRequestError(f"choices is {choices!r}; each must have at least one token")
        operation = Select(f"select({'' if name is None else repr(name)})", tokens, normalize=normalize)
        self._push(operation)
        self._keep(name, operation.variable)

    # ---- branches ----

    def fork(self, num_branches: int) -> list["State"]:
        """Return states that go on from here, each on its own, at the same time; they share the blocks of this text.

        They see the variables made so far; theirs are not seen here. Raises InvalidRequestError for fewer than one.
        """
        if not isinstance(num_branches, int) or isinstance(num_branches, bool) or num_branches < 1:
            raise InvalidRequestError(f"fork into {num_branches!r} branches; it must be a whole number, at least 1")
        self._execution.check()
        branches = self._execution.fork(num_branches)
        self._push(Fork(branches))
        forks = [State(self._execution, branch, self._tools, self.options) for branch in branches]
        for fork in forks:
            fork.variables, fork._chat = dict(self.variables), self._chat.copy()
        return forks

    def join(self, forks: Sequence["State"]) -> None:
        """Wait until all that the forks have been given to do is done. Raises the error of the first one that failed."""
        self._execution.settle([fork._branch for fork in forks])

    # ---- values ----

    def __getitem__(self, name: str) -> str:
        """Text of a variable, as soon as it is there.

        Raises UnknownVariableError, naming those there are, and whatever went wrong on the way to it.
        """
        if name not in self.variables:
            raise unknown_variable(name, self.variables)
        variable = self.variables[name]
        self._execution.wait(lambda: variable.is_settled)
        if variable.output is None:
            assert variable.error is not None, "a settled variable has the one or the other"
            self._execution.raise_error(variable.error)
        assert variable.output is not None
        return variable.output.text

    @property
    def text(self) -> str:
        """All that was written and generated, once it is."""
        self._execution.settle([self._branch])
        assert self._branch.transcript is not None, "a settled branch without error has got its text"
        return self._branch.transcript.text

    # ---- inside ----

    @contextmanager
    def _message(self, role: str) -> Iterator[None]:
        self._push(Write(self._chat.open(role), is_template=True))
        yield
        self._push(Write(self._chat.close(), is_template=True))

    def _push(self, operation: Operation) -> None:
        self._execution.check()
        self._branch.push(operation)

    def _keep(self, name: str | None, variable: Variable) -> None:
        if name is not None:
            self.variables[name] = variable


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
