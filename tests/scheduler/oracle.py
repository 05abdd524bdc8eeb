"""An executor over a simulated KV memory, and what each request must come to when nobody else is there.

Each slot of the memory holds what a real one depends on: the salt and the *whole* prefix of tokens up to its own. A chunk
whose request finds anything but its own prefix through its block table would attend to somebody else's context, or to
memory that nobody has computed. The next token is a pure function of prefix, seed and sample index, so the output of a
request does not depend on how it was batched, chunked, preempted, cached or forked, or it was computed wrongly.
"""

from collections import Counter
from typing import NamedTuple
from zlib import crc32

from infra_lab.paged_kv.block_manager import BlockCopy
from infra_lab.scheduler.plan import NO_TOKEN, Speculated, StepPlan, StepResult
from infra_lab.scheduler.request import Request, Status
from infra_lab.scheduler.scheduler import Scheduler

VOCAB_SIZE = 3

Slot = tuple[str, tuple[int, ...]]
"""The salt, and the tokens up to and with the slot's own."""


class Outcome(NamedTuple):
    token_ids: list[int]
    reason: str


def next_token(tokens: list[int], seed: int, sample_index: int) -> int:
    return crc32(bytes((seed, sample_index, *tokens))) % VOCAB_SIZE


def alone(request: Request, max_model_len: int) -> Outcome:
    """Compute a request by itself, from nothing but what its caller gave."""
    params, tokens = request.params, list(request.token_ids[: request.num_prompt_tokens])
    output: list[int] = []
    while True:
        output.append(next_token(tokens + output, request.seed, request.sample_index))
        if output[-1] in request.stop_token_ids and len(output) >= params.min_tokens:
            return Outcome(output, "stop")
        if len(output) == params.max_tokens or len(tokens) + len(output) == max_model_len:
            return Outcome(output, "length")


class OracleExecutor:
    """Executes plans as the `Executor` contract says, and checks that each can be executed.

    A chunk whose request was finished after the plan was made is passed over: its blocks may be anybody's by now.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.block_size = scheduler.blocks.block_size
        self.memory: list[list[Slot | None]] = [[None] * self.block_size for _ in range(scheduler.blocks.num_blocks)]
        self.fail_positions: set[int] = set()
        """Positions of the next plan whose logits are not finite."""
        self._prefixes: dict[Request, list[Slot]] = {}

    def execute(self, plan: StepPlan) -> StepResult:
        self._check_shape(plan)
        chunks = {i: chunk for i, chunk in enumerate(plan.chunks) if not chunk.request.is_finished}
        self._copy(plan.copies)
        for request, start, _ in chunks.values():  # what was there before this step: nothing of it counts as computed
            self._check_context(request, start)
        owners = Counter(block for request in self.scheduler.requests.values() for block in request.block_table)
        for request, start, num_tokens in chunks.values():
            for position in range(start, start + num_tokens):
                block = self._block(request, position)
                assert owners[block] == 1, f"{_name(request)} writes to block {block}, which has {owners[block]} owners"
                self.memory[block][position % self.block_size] = self._expected(request, position + 1)[position]
        proposed = {i: self._propose(*chunks[i], room) for i, room in plan.drafts.items() if i in chunks}
        for i, tokens in proposed.items():
            request, start, num_tokens = chunks[i]
            for place in range(len(tokens)):
                position = start + num_tokens + place
                block = self._block(request, position)
                assert owners[block] == 1, (
                    f"{_name(request)} drafts into block {block}, which has {owners[block]} owners"
                )
                slot = (request.cache_salt, (*request.token_ids, *tokens[: place + 1]))
                self.memory[block][position % self.block_size] = slot
        for request, start, num_tokens in chunks.values():
            self._check_context(request, start + num_tokens)
        return self._sample(plan, proposed)

    def close(self) -> None:
        self.memory.clear()

    def _propose(self, request: Request, start: int, num_tokens: int, room: int) -> list[int]:
        """Propose as many tokens as there is room for, or one less; most are what the request would sample, some are not."""
        assert (num_tokens, start + 1) == (1, len(request.token_ids)), f"{_name(request)} drafts, but does not decode"
        assert len(request.token_ids) + room < request.max_total_tokens, f"{_name(request)}: {room} drafts are too many"
        tokens: list[int] = []
        for _ in range(room - crc32(bytes(request.token_ids)) % 2):
            true = next_token(request.token_ids + tokens, request.seed, request.sample_index)
            tokens.append((true + (crc32(bytes((7, *request.token_ids, *tokens))) % 4 == 0)) % VOCAB_SIZE)
        return tokens

    def _sample(self, plan: StepPlan, proposed: dict[int, list[int]]) -> StepResult:
        result = StepResult([NO_TOKEN] * len(plan.chunks))
        for i, (request, start, num_tokens) in enumerate(plan.chunks):
            if request.is_finished or start + num_tokens < len(request.token_ids):
                continue
            if i in self.fail_positions:
                result.errors[i] = "logits are not finite"
                continue
            tokens, drafts = list(request.token_ids), proposed.get(i, [])
            while (token := next_token(tokens, request.seed, request.sample_index)) in drafts[:1]:
                tokens.append(token)
                drafts = drafts[1:]
            result.token_ids[i] = token
            if i in proposed:
                result.speculated[i] = Speculated(proposed[i], len(tokens) - len(request.token_ids))
        self.fail_positions.clear()
        return result

    def _check_shape(self, plan: StepPlan) -> None:
        budget = self.scheduler.config.max_batched_tokens
        planned = sum(chunk.num_tokens for chunk in plan.chunks)
        drafted = sum(plan.drafts.values())
        assert planned + drafted <= budget, (
            f"a step of {planned} tokens and {drafted} drafts, over the budget of {budget}"
        )
        assert plan.num_tokens == planned, f"plan.num_tokens is {plan.num_tokens}, its chunks have {planned}"
        times = Counter(chunk.request for chunk in plan.chunks)
        assert not times or max(times.values()) == 1, f"planned twice: {_name(max(times, key=lambda r: times[r]))}"
        for request, start, num_tokens in plan.chunks:
            if request.is_finished:
                continue
            assert request.status is Status.RUNNING, f"{_name(request)} is planned and {request.status.value}"
            assert start == request.num_computed, f"{_name(request)} goes on at {start}, has {request.num_computed}"
            assert 1 <= num_tokens <= len(request.token_ids) - start, (
                f"{_name(request)} gets {num_tokens} tokens at {start} of {len(request.token_ids)}"
            )

    def _copy(self, copies: list[BlockCopy]) -> None:
        for source, destination in copies:
            self.memory[destination] = list(self.memory[source])

    def _check_context(self, request: Request, num_tokens: int) -> None:
        expected = self._expected(request, num_tokens)
        for position in range(num_tokens):
            block = self._block(request, position)
            found = self.memory[block][position % self.block_size]
            assert found == expected[position], (
                f"{_name(request)}, token {position}: block {block} holds {found}, not {expected[position]}"
            )

    def _block(self, request: Request, position: int) -> int:
        index, table = position // self.block_size, request.block_table
        assert index < len(table), f"{_name(request)}, token {position}: its table ends after {len(table)} blocks"
        return table[index]

    def _expected(self, request: Request, num_tokens: int) -> list[Slot]:
        """What the slots of at least the first `num_tokens` tokens must hold."""
        slots = self._prefixes.setdefault(request, [])
        while len(slots) < num_tokens:
            slots.append((request.cache_salt, tuple(request.token_ids[: len(slots) + 1])))
        return slots


def _name(request: Request) -> str:
    return f"request {request.request_id} {request.token_ids}"
