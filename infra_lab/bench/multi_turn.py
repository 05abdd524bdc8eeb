"""How much of chats is computed with no prefix cache, with hashes and with a radix tree: tokens of prefill, and CPU time.

Every session begins with one of a few system prompts. Each turn's prompt is all that was said before and a new question; now
and then the question is rewritten from some token on, and asked again. Many sessions run at once; the pool holds them all, so
that what is computed twice is for the index to answer for, not for eviction.

It is the engine's scheduler and block manager, without a model: answers are random tokens, the same for every kind.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from time import perf_counter
from typing import Literal

from infra_lab.bench.report import BenchRow, at_least, at_most
from infra_lab.errors import ConfigError
from infra_lab.paged_kv.block_manager import BlockManager
from infra_lab.sampling_params import SamplingParams
from infra_lab.scheduler.config import SchedulerConfig
from infra_lab.scheduler.plan import NO_TOKEN, StepPlan, StepResult
from infra_lab.scheduler.request import Request
from infra_lab.scheduler.scheduler import Scheduler

BLOCK_SIZE = 16
NUM_TURNS = 6
NUM_SYSTEM_PROMPTS = 4
SYSTEM_TOKENS = 150
QUESTION_TOKENS = (10, 60)
ANSWER_TOKENS = (20, 120)
REWRITTEN = 0.2
"""Share of turns in which the question is asked again in other words."""
VOCAB_SIZE = 128_000
MAX_MODEL_LEN = 4096

CacheKind = Literal["none", "hash", "radix"]
INDEXES: tuple[CacheKind, ...] = ("hash", "radix")


@dataclass(frozen=True, slots=True, kw_only=True)
class MultiTurnRow:
    """What the same chats cost with one kind of prefix cache."""

    kind: CacheKind
    num_turns: int
    num_requests: int
    prompt_tokens: int
    prefill_tokens: int
    """Of the prompts' tokens, those that were computed."""
    num_copies: int
    schedule_us: float
    """Time of `schedule` and `update`, per request."""


def multi_turn_rows(*, quick: bool, say: Callable[[str], None]) -> list[BenchRow]:
    """Rows for what a prefix cache saves in chats, and what its two kinds of index cost."""
    say("multi-turn chats")
    num_sessions = 16 if quick else 64
    none = measure_multi_turn("none", num_sessions=num_sessions)
    # In turn, and the quickest of each: another program that wants the core in between slows whichever runs.
    both = [[measure_multi_turn(kind, num_sessions=num_sessions) for kind in INDEXES] for _ in range(3)]
    by_hash, radix = (min(rows, key=lambda row: row.schedule_us) for rows in zip(*both, strict=True))
    note = (
        f"chats of {radix.num_turns} turns, {radix.num_requests:,} requests, {none.prompt_tokens:,} tokens of prompts; "
        f"the tree copies {radix.num_copies:,} blocks"
    )
    return [
        at_least("chats: prefill, no cache", none.prefill_tokens, "tok", "radix tree", radix.prefill_tokens, 2.0, note),
        at_least("  prefill, hashes", by_hash.prefill_tokens, "tok", "radix tree", radix.prefill_tokens, None, note),
        at_most("  scheduling, radix tree", radix.schedule_us, "µs", "with hashes", by_hash.schedule_us, None, note),
    ]


def measure_multi_turn(kind: CacheKind, *, num_sessions: int = 64, seed: int = 0) -> MultiTurnRow:
    """Run the chats through a scheduler with that kind of prefix cache. Raises ConfigError for no sessions."""
    if num_sessions < 1:
        raise ConfigError(f"num_sessions is {num_sessions}; it must be at least 1")
    chats = _Chats(kind, num_sessions, seed)
    chats.run()
    return MultiTurnRow(
        kind=kind,
        num_turns=NUM_TURNS,
        num_requests=chats.num_requests,
        prompt_tokens=chats.prompt_tokens,
        prefill_tokens=chats.prefill_tokens,
        num_copies=chats.blocks.stats.copies,
        schedule_us=chats.scheduling_s / chats.num_requests * 1e6,
    )


class _Chats:
    """Sessions that go through one scheduler, a request each at a time."""

    def __init__(self, kind: CacheKind, num_sessions: int, seed: int) -> None:
        self.blocks = BlockManager(
            num_sessions * (MAX_MODEL_LEN // BLOCK_SIZE),
            BLOCK_SIZE,
            enable_prefix_cache=kind != "none",
            prefix_index="radix" if kind == "radix" else "hash",
        )
        config = SchedulerConfig(max_model_len=MAX_MODEL_LEN, max_num_seqs=64, max_batched_tokens=2048)
        self.scheduler = Scheduler(config, self.blocks)
        self.prompt_tokens = self.prefill_tokens = self.num_requests = 0
        self.scheduling_s = 0.0
        self._ids = count()
        shared = random.Random(seed)
        self._system_prompts = [_tokens(shared, SYSTEM_TOKENS) for _ in range(NUM_SYSTEM_PROMPTS)]
        # Each session draws from a source of its own: its tokens do not depend on who runs beside it.
        self._sessions = [self._session(random.Random(f"{seed} {index}")) for index in range(num_sessions)]
        self._open: dict[str, tuple[Iterator[Request], random.Random]] = {}

    def run(self) -> None:
        """Run all sessions to their ends."""
        for session in self._sessions:
            self._ask_next(session)
        while self.scheduler.has_work:
            start_s = perf_counter()
            plan = self.scheduler.schedule()
            scheduled_s = perf_counter()
            result = self._compute(plan)
            computed_s = perf_counter()
            ended = self.scheduler.update(plan, result)
            self.scheduling_s += perf_counter() - computed_s + scheduled_s - start_s
            for request in ended:
                self._ask_next(self._open.pop(request.request_id)[0])
        self.blocks.check_integrity([])

    def _session(self, rng: random.Random) -> Iterator[Request]:
        text = rng.choice(self._system_prompts)
        for _ in range(NUM_TURNS):
            question = _tokens(rng, rng.randint(*QUESTION_TOKENS))
            request = self._request([*text, *question], rng)
            yield request
            if rng.random() < REWRITTEN:
                kept = question[: rng.randrange(len(question))]
                request = self._request([*text, *kept, *_tokens(rng, rng.randint(*QUESTION_TOKENS))], rng)
                yield request
            text = request.token_ids

    def _request(self, prompt: list[int], rng: random.Random) -> Request:
        params = SamplingParams(max_tokens=rng.randint(*ANSWER_TOKENS))
        return Request(token_ids=prompt, request_id=str(next(self._ids)), params=params, seed=rng.randrange(1 << 32))

    def _ask_next(self, session: Iterator[Request]) -> None:
        request = next(session, None)
        if request is not None:
            self.num_requests += 1
            self.prompt_tokens += request.num_prompt_tokens
            self._open[request.request_id] = (session, random.Random(request.seed))
            self.scheduler.add(request)

    def _compute(self, plan: StepPlan) -> StepResult:
        sampled = []
        for request, start, num_tokens in plan.chunks:
            self.prefill_tokens += max(min(start + num_tokens, request.num_prompt_tokens) - start, 0)
            is_short = start + num_tokens < len(request.token_ids)
            rng = self._open[request.request_id][1]
            sampled.append(NO_TOKEN if is_short else rng.randrange(VOCAB_SIZE))
        return StepResult(sampled)


def _tokens(rng: random.Random, num_tokens: int) -> list[int]:
    return rng.choices(range(VOCAB_SIZE), k=num_tokens)
