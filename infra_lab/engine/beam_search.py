"""Beam search on the engine's own scheduler and paged memory: beams share the blocks of the prefix that they share.

Every open beam is a request that runs. A step gives each its next token's log-probabilities; then the best continuations
of all are chosen, and each beam branches into those that continue it, or ends:

    step n          beams (width 3)        blocks of 4 tokens
                                            ┌───────────┬───────────┐
    a b c d e   ──▶  a b c d e f   keeps    │  a b c d  │  e f      │
                └─▶  a b c d e g   shares   │     "     │  e g      │ ◀── copied when one of the two is written
    a b c d h   ──▶  a b c d h i   keeps    │     "     │  h i      │
    a b j k l   ──▶  (nothing)     its blocks go home

Beams go on together: each needs all others' log-probabilities before it knows whether it lives. If blocks or seats are
short, and some of them wait, those that have their answer give back what they hold, so that the others come to theirs;
the next beams then find their prefix in the cache, or compute it again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

from infra_lab.engine.beam_hypotheses import EarlyStopping, Hypotheses, OpenBeam
from infra_lab.engine.llm import LLM, Prompt
from infra_lab.errors import InfraLabError, InvalidRequestError
from infra_lab.sampling_params import MAX_LOGPROBS, SamplingParams
from infra_lab.scheduler.plan import StepPlan, StepResult
from infra_lab.scheduler.request import Request

MAX_LENGTH_PENALTY = 16.0
"""Beyond, length ** length_penalty leaves the range in which scores can be told apart."""


class Beam(NamedTuple):
    """One of the sequences found."""

    text: str
    token_ids: list[int]
    """The new tokens; a final end-of-sequence token included."""
    logprob: float
    """Of all new tokens together."""
    score: float
    """logprob / len(token_ids) ** length_penalty: what the beams are ranked by."""
    finish_reason: str
    """"stop" (end of sequence) or "length"."""


@dataclass(slots=True)
class BeamStats:
    """What the search cost."""

    num_steps: int = 0
    num_computed_tokens: int = 0
    """Over all beams, with the prompt, and with what had to be computed again."""
    num_copies: int = 0
    """Blocks copied on write."""
    peak_blocks: int = 0
    """Blocks held at once, at most, by all beams together."""
    peak_unshared_blocks: int = 0
    """What they would have held at once without sharing: the sum of the block tables' lengths."""


@dataclass(frozen=True, slots=True)
class BeamSearchOutput:
    """The best sequences of a prompt, at most `beam_width` of them, best first."""

    prompt_token_ids: list[int]
    beams: list[Beam]
    stats: BeamStats

    @property
    def text(self) -> str:
        """Text of the best one."""
        return self.beams[0].text

    @property
    def token_ids(self) -> list[int]:
        """Tokens of the best one."""
        return self.beams[0].token_ids


def beam_search(
    llm: LLM,
    prompt: Prompt,
    *,
    beam_width: int,
    max_tokens: int,
    length_penalty: float = 1.0,
    early_stopping: EarlyStopping = True,
) -> BeamSearchOutput:
    """Find the sequences of the highest scores, as transformers' `generate(num_beams=beam_width)` does.

    max_tokens: new tokens, at most; fewer if the context ends before. For `length_penalty` and `early_stopping` see
    `Hypotheses`. Other requests of the engine go on meanwhile; what they emit is not returned here.

    Raises InvalidRequestError for a prompt or parameters that cannot be served, with nothing changed, and InfraLabError if
    the model's logits are not finite. Whatever it raises, no block is kept.
    """
    with (
        llm.core.without_overlap(),  # what runs next is chosen by what the latest step has brought
        _Search(llm, prompt, beam_width, max_tokens, length_penalty, early_stopping) as search,
    ):
        while not search.hypotheses.is_done:
            llm.core.step()
            if llm.core.last_step is not None:
                search.take(*llm.core.last_step)
        return search.output()


class _Search:
    """The requests of one search, a request an open beam."""

    def __init__(
        self,
        llm: LLM,
        prompt: Prompt,
        beam_width: int,
        max_tokens: int,
        length_penalty: float,
        early_stopping: EarlyStopping,
    ) -> None:
        self._core, self._scheduler = llm.core, llm.core.scheduler
        self._prompt = llm.encode(prompt)
        eos_token_ids = frozenset(llm.tokenizer.eos_token_ids)
        _check(beam_width, max_tokens, len(eos_token_ids), self._scheduler.config.max_num_seqs)
        _check_scoring(length_penalty, early_stopping)
        self._core.check_prompt(self._prompt)
        room = self._scheduler.config.max_model_len - len(self._prompt)
        self.hypotheses = Hypotheses(
            beam_width, max(min(max_tokens, room), 1), length_penalty, early_stopping, eos_token_ids
        )
        self._num_logprobs = min(self.hypotheses.num_candidates, llm.model.config.vocab_size)
        self._stats = BeamStats()
        self._arrival_s = self._core.clock.now()
        name = self._core.new_request_id()
        self._free_ids = [f"{name}.{index}" for index in range(beam_width)]
        root = self._request(self._prompt, self._free_ids.pop(0), self.hypotheses.max_tokens)
        self._scheduler.add(root)
        self._requests = [root]
        self._tops: dict[Request, list[tuple[int, float]]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for request in self._requests:
            if not request.is_finished:
                self._scheduler.finish(request, "abort")

    def take(self, plan: StepPlan, result: StepResult) -> None:
        """Read what a step computed for the beams; branch them once all have their log-probabilities."""
        self._count(plan)
        for position, chunk in enumerate(plan.chunks):
            if chunk.request in self._requests:
                if position in result.errors:
                    raise InfraLabError(f"beam search of {chunk.request.request_id}: {result.errors[position]}")
                if position in result.logprobs:
                    self._tops[chunk.request] = result.logprobs[position].top
        if len(self._tops) == len(self._requests):
            self.hypotheses.advance([self._tops[request] for request in self._requests])
            self._tops.clear()
            if not self.hypotheses.is_done:
                self._branch(self.hypotheses.open)
            return
        for request in self._tops:  # their answers are known, and the others need blocks and seats
            if not request.is_finished:
                self._scheduler.finish(request, "branched")

    def output(self) -> BeamSearchOutput:
        """Return what was found."""
        tokenizer = self._core.tokenizer
        beams = [
            Beam(
                tokenizer.decode(token_ids[: -1 if reason == "stop" else None]), list(token_ids), logprob, score, reason
            )
            for token_ids, logprob, score, reason in self.hypotheses.ended
        ]
        return BeamSearchOutput(self._prompt, beams, self._stats)

    def _branch(self, beams: Sequence[OpenBeam]) -> None:
        """Let every beam's request go on as those that continue it. The best of them keeps its place in the records."""
        members: list[list[int]] = [[] for _ in self._requests]
        for index, beam in enumerate(beams):
            members[beam.parent].append(index)
        remaining = self.hypotheses.max_tokens - len(beams[0].token_ids)
        successors: dict[int, Request] = {}
        # Those that end go first, and leave ids and seats to those that become several.
        for parent, children in sorted(zip(self._requests, members, strict=True), key=lambda pair: len(pair[1])):
            self._free_ids.insert(0, parent.request_id)
            for index in children:
                # Two, where it may: a request ends with its last token, and gives back the blocks that a child shares.
                token_ids = [*self._prompt, *beams[index].token_ids]
                successors[index] = self._request(token_ids, self._free_ids.pop(0), min(2, remaining))
            self._scheduler.branch(parent, [successors[index] for index in children])
        self._requests = [successors[index] for index in range(len(beams))]

    def _request(self, token_ids: Sequence[int], request_id: str, max_tokens: int) -> Request:
        params = SamplingParams(temperature=0.0, max_tokens=max_tokens, logprobs=self._num_logprobs)
        return Request(token_ids=list(token_ids), request_id=request_id, params=params, arrival_s=self._arrival_s)

    def _count(self, plan: StepPlan) -> None:
        """Look at the beams as they were computed, before they branch."""
        stats = self._stats
        held = [block for request in self._requests for block in request.block_table]
        stats.num_steps += 1
        stats.num_computed_tokens += sum(chunk.num_tokens for chunk in plan.chunks if chunk.request in self._requests)
        stats.num_copies += sum(copy.destination in held for copy in plan.copies)
        stats.peak_blocks = max(stats.peak_blocks, len(set(held)))
        stats.peak_unshared_blocks = max(stats.peak_unshared_blocks, len(held))


def _check(beam_width: int, max_tokens: int, num_eos: int, max_num_seqs: int) -> None:
    widest = min(MAX_LOGPROBS - num_eos, max_num_seqs)
    for name, value, most in (("beam_width", beam_width, widest), ("max_tokens", max_tokens, None)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InvalidRequestError(f"{name} is {value!r}; it must be a whole number, at least 1")
        if most is not None and value > most:
            raise InvalidRequestError(
                f"{name} is {value}; {most} beams at most run side by side here: max_num_seqs is {max_num_seqs}, and a "
                f"step ranks up to {MAX_LOGPROBS} tokens of a beam, among them {num_eos} ends of sequence"
            )


def _check_scoring(length_penalty: float, early_stopping: EarlyStopping) -> None:
    is_number = isinstance(length_penalty, int | float) and not isinstance(length_penalty, bool)
    if not is_number or not -MAX_LENGTH_PENALTY <= length_penalty <= MAX_LENGTH_PENALTY:
        raise InvalidRequestError(
            f"length_penalty is {length_penalty!r}; it must be between -{MAX_LENGTH_PENALTY} and {MAX_LENGTH_PENALTY}"
        )
    if not isinstance(early_stopping, bool) and early_stopping != "never":
        raise InvalidRequestError(f"early_stopping is {early_stopping!r}; it must be True, False or 'never'")
