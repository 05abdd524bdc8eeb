"""Constrained decoding: a token that would leave the request's grammar gets no chance (xgrammar, Dong 2024).

    SamplingParams.grammar ── bind: compile for the vocabulary, once ──▶ BoundGrammar
                                                                            │ a matcher a request
    logits [S, V] ── apply: -inf where the matcher's bit is 0 ◀── bits [S, V/32]┘

To compile takes from a millisecond to many seconds, as the caller's grammar wants. Whoever serves others at the same time
binds on another thread before the engine hears of the request; `core.add` binds what comes to it unbound.

A matcher's state is where its request's output stands in the grammar: it follows from the output's tokens. So it belongs
to nobody's bookkeeping, and preemption, forks and a repeated step need no care: whoever asks for a mask first has the
matcher read the tokens that it has not seen yet.
"""

import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import TYPE_CHECKING, Literal

import torch

from infra_lab.engine.sampling.schema_check import check_json_schema
from infra_lab.errors import InvalidRequestError, InvariantError, MissingExtraError
from infra_lab.grammar import Grammar
from infra_lab.models.tokenizer import Tokenizer
from infra_lab.sampling_params import SamplingParams
from infra_lab.scheduler.request import Request

if TYPE_CHECKING:
    from xgrammar import CompiledGrammar, GrammarMatcher
    from xgrammar import GrammarCompiler as XGrammarCompiler

MAX_WHITESPACE = 8
"""Blanks in a row between two parts of JSON: enough to indent it, too few for a model to write blanks to the end."""
CACHE_BYTES = 64 << 20
"""Compiled grammars that are kept for the next request with the same one."""
_NEVER_IN_JSON = re.compile(rb"[\x00-\x09\x0b\x0c\x0e-\x1f]")
"""Tabs may stand between the parts of JSON, but not in its strings: one rule for both."""


@dataclass(frozen=True, slots=True)
class BoundGrammar(Grammar):
    """A grammar, compiled for a tokenizer's vocabulary. Pickled, it is the plain specification again."""

    compiled: "CompiledGrammar" = field(compare=False, repr=False)
    end_token_ids: frozenset[int] = field(compare=False, repr=False)
    """The end-of-sequence tokens: possible where the output is complete, and nowhere else."""
    compiler: "GrammarCompiler" = field(compare=False, repr=False)
    """Whose vocabulary it is compiled for."""

    def __reduce__(self) -> tuple[type[Grammar], tuple[str, str]]:
        return Grammar, (self.kind, self.source)


class GrammarCompiler:
    """Compiles grammars for one tokenizer and keeps them.

    Threads may share one: each compiles its own grammar without waiting for the others, those that want the same one wait
    for the first. The GIL is free meanwhile.

    vocab_size: columns of the model's logits; those that the tokenizer has no token for are never allowed.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        self._making = threading.Lock()
        self._made: dict[str, XGrammarCompiler] = {}

    def bind(self, params: SamplingParams) -> SamplingParams:
        """Return the parameters with their grammar compiled; those without one, or with it done here, as they are.

        Raises InvalidRequestError for a grammar that is not valid, MissingExtraError without xgrammar.
        """
        grammar = params.grammar
        if grammar is None or (isinstance(grammar, BoundGrammar) and grammar.compiler is self):
            return params
        return replace(params, grammar=self.compile(grammar))

    def compile(self, grammar: Grammar) -> BoundGrammar:
        """Compile a grammar, or find it compiled (see `bind` for the errors)."""
        if not self._tokenizer.eos_token_ids:
            raise InvalidRequestError("the model has no end-of-sequence token, which ends an output in a grammar")
        if grammar.kind == "json_schema":
            check_json_schema(grammar.source)
        try:
            compiled = self._compile(grammar)
        except (RuntimeError, ValueError, TypeError) as error:
            problem = re.sub(r"^\[[\d:]+\] \S+: ", "", str(error)).strip()
            raise InvalidRequestError(f"the grammar ({grammar.kind}) is not valid: {problem}") from error
        return BoundGrammar(grammar.kind, grammar.source, compiled, frozenset(self._tokenizer.eos_token_ids), self)

    def _compile(self, grammar: Grammar) -> "CompiledGrammar":
        if grammar.kind == "json_schema":
            return self._compiler("json").compile_json_schema(grammar.source, max_whitespace_cnt=MAX_WHITESPACE)
        if grammar.kind == "regex":
            return self._compiler("text").compile_regex(grammar.source)
        return self._compiler("text").compile_grammar(grammar.source)

    def _compiler(self, kind: Literal["text", "json"]) -> "XGrammarCompiler":
        """The one for a kind of output. It has a cache of its own, so there must not be two that each know half.

        JSON knows no control characters but blanks, and xgrammar 0.2 lets them into strings with a maxLength.
        """
        with self._making:
            if kind not in self._made:
                is_json = kind == "json"
                self._made[kind] = self._for_vocabulary(lambda token: not (is_json and _NEVER_IN_JSON.search(token)))
            return self._made[kind]

    def _for_vocabulary(self, is_allowed: Callable[[bytes], bool]) -> "XGrammarCompiler":
        """A compiler that knows the allowed tokens. A special token leaves no text behind, so it stands for none."""
        xgrammar, tokenizer = _xgrammar(), self._tokenizer
        tokens = (
            b"" if i in tokenizer.special_token_ids else tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)
        )
        info = xgrammar.TokenizerInfo(
            [token if is_allowed(token) else b"" for token in tokens],  # b"" is never allowed
            xgrammar.VocabType.RAW,
            vocab_size=self._vocab_size,
            stop_token_ids=list(tokenizer.eos_token_ids),
        )
        compiler: XGrammarCompiler = xgrammar.GrammarCompiler(
            info, max_threads=torch.get_num_threads(), cache_limit_bytes=CACHE_BYTES
        )
        return compiler


@dataclass(slots=True)
class _Progress:
    """How far one request's output has been read."""

    matcher: "GrammarMatcher"
    num_read: int = 0


class GrammarMasks:
    """Masks logits for the requests that have a grammar; keeps their matchers as long as they are open."""

    def __init__(self) -> None:
        self._progress: dict[Request, _Progress] = {}

    def apply(self, logits: torch.Tensor, requests: Sequence[Request]) -> None:
        """Set to -inf what each request's grammar does not allow next, in float32 logits [S, V], in place.

        A row where nothing is allowed is -inf throughout: the vocabulary cannot spell what the grammar wants.
        """
        rows = [row for row, request in enumerate(requests) if request.params.grammar is not None]
        if not rows:
            return
        xgrammar = _xgrammar()
        bits = xgrammar.allocate_token_bitmask(*logits.shape)  # [S, V / 32] int32
        for row in rows:
            self._fill(bits, row, requests[row])
        xgrammar.apply_token_bitmask_inplace(logits, bits.to(logits.device), vocab_size=logits.shape[1], indices=rows)

    def _fill(self, bits: torch.Tensor, row: int, request: Request) -> None:
        """Set one row's bits. An end that is not wanted yet is put off as long as the grammar has anything else to say."""
        grammar = _bound(request)
        self._read(request, grammar).fill_next_token_bitmask(bits, row)
        unwanted = grammar.end_token_ids if request.params.ignore_eos else frozenset()
        if len(request.token_ids) < request.min_total_tokens:
            unwanted = request.stop_token_ids | grammar.end_token_ids
        if unwanted:
            others = bits[row].clone()
            for token_id in unwanted:
                others[token_id // 32] &= ~_BIT[token_id % 32]
            if others.any():
                bits[row] = others

    def _read(self, request: Request, grammar: BoundGrammar) -> "GrammarMatcher":
        """Return the request's matcher, which has read all of its output."""
        progress = self._progress.get(request)
        if progress is None:
            self._progress = {other: kept for other, kept in self._progress.items() if not other.is_finished}
            progress = self._progress[request] = _Progress(_xgrammar().GrammarMatcher(grammar.compiled))
        for token_id in request.token_ids[request.num_prompt_tokens + progress.num_read :]:
            if not progress.matcher.accept_token(token_id):
                raise InvariantError(
                    f"{request.request_id}: output token {progress.num_read}, {token_id}, is outside its grammar; "
                    "every token of its output must have been sampled under the grammar's mask"
                )
            progress.num_read += 1
        return progress.matcher


_BIT = (*(1 << bit for bit in range(31)), -(1 << 31))
"""The bits of an int32, the sign bit included."""


def _bound(request: Request) -> BoundGrammar:
    grammar = request.params.grammar
    if not isinstance(grammar, BoundGrammar):
        raise InvariantError(f"{request.request_id}: its grammar was not compiled; GrammarCompiler.bind does that")
    return grammar


def _xgrammar() -> ModuleType:
    """Import xgrammar where it is needed: it brings transformers along, which takes a second."""
    try:
        import xgrammar
    except ImportError as error:
        raise MissingExtraError(
            f"a grammar needs xgrammar ({error}); install it with: pip install 'infra-lab[server]'"
        ) from error
    return xgrammar
