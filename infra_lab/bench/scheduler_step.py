"""What one `schedule` and one `update` cost on the CPU, by how many requests run: time in which an accelerator waits.

Three kinds of step, each with `num_running` requests decoding. They are the objects of the engine, with no executor: only
the two calls are timed, and what a model would sample is filled in between them.

    decode     everyone decodes, nobody waits, nothing ends: the step that an engine makes most
    prefill    also a prompt of 512 tokens is computed, 128 tokens a step: hashed, given blocks, registered; then the next
    turnover   also eight requests of 64 tokens come in, get one token each, and end

A scheduler that is linear costs the same per request at every size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from statistics import median, quantiles
from time import perf_counter

from infra_lab.errors import ConfigError
from infra_lab.paged_kv.block_manager import BlockManager
from infra_lab.sampling_params import SamplingParams
from infra_lab.scheduler.config import SchedulerConfig
from infra_lab.scheduler.plan import NO_TOKEN, StepPlan, StepResult
from infra_lab.scheduler.request import Request
from infra_lab.scheduler.scheduler import Scheduler

BLOCK_SIZE = 16
MAX_MODEL_LEN = 4096
LONG_PROMPT_TOKENS = 512
CHUNK_TOKENS = 128
SHORT_PROMPT_TOKENS = 64
NUM_TURNOVER = 8
BLOCKS_A_REQUEST = 48
"""So that nobody is preempted: up to 127 tokens of prompt, and one more for each step."""
MAX_STEPS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerStepRow:
    """Cost of one step of one kind with so many requests running."""

    kind: str
    """"decode", "prefill" or "turnover"; see the module's docstring."""
    num_running: int
    num_steps: int
    p50_ms: float
    p95_ms: float
    """schedule and update together."""
    schedule_p50_ms: float
    update_p50_ms: float
    us_per_request: float
    ratio_to_linear: float
    """Cost a request over that at the first size: 1 or less means that the step grows no faster than linearly."""


def measure_scheduler_step(
    num_running: Sequence[int] = (256, 512, 1024, 2048, 4096), *, num_steps: int = 200
) -> list[SchedulerStepRow]:
    """Time steps of each kind at several numbers of running requests; one row a kind and number.

    Raises ConfigError if `num_steps` is not from 2 to 512, or a number of requests is less than 1.
    """
    if not 2 <= num_steps <= MAX_STEPS:
        raise ConfigError(f"num_steps is {num_steps}; it must be from 2, for percentiles, to {MAX_STEPS}")
    if not num_running or min(num_running) < 1:
        raise ConfigError(f"num_running is {list(num_running)}; give one number or more, each at least 1")
    arrivals: dict[str, Callable[[_Load], None]] = {
        "decode": lambda load: None,
        "prefill": _Load.keep_a_prompt_coming,
        "turnover": _Load.turn_over,
    }
    rows: list[SchedulerStepRow] = []
    for kind, arrive in arrivals.items():
        first_us = 0.0
        for size in num_running:
            row = _measure(kind, size, num_steps, arrive, first_us)
            first_us = first_us or row.us_per_request
            rows.append(row)
    return rows


def _measure(
    kind: str, num_running: int, num_steps: int, arrive: "Callable[[_Load], None]", first_us: float
) -> SchedulerStepRow:
    load = _Load(num_running)
    schedule_s, update_s = [], []
    for _ in range(num_steps):
        arrive(load)
        begin = perf_counter()
        plan = load.scheduler.schedule()
        schedule_s.append(perf_counter() - begin)
        result = sample(plan)
        begin = perf_counter()
        load.scheduler.update(plan, result)
        update_s.append(perf_counter() - begin)
    total_s = [schedule + update for schedule, update in zip(schedule_s, update_s, strict=True)]
    us_per_request = median(total_s) / num_running * 1e6
    return SchedulerStepRow(
        kind=kind,
        num_running=num_running,
        num_steps=num_steps,
        p50_ms=median(total_s) * 1e3,
        p95_ms=quantiles(total_s, n=20)[-1] * 1e3,
        schedule_p50_ms=median(schedule_s) * 1e3,
        update_p50_ms=median(update_s) * 1e3,
        us_per_request=us_per_request,
        ratio_to_linear=us_per_request / (first_us or us_per_request),
    )


class _Load:
    """A scheduler in which `num_running` requests decode, and further ones come as they are asked for."""

    def __init__(self, num_running: int) -> None:
        self.num_running = num_running
        self._numbers = count()
        config = SchedulerConfig(
            max_model_len=MAX_MODEL_LEN,
            max_num_seqs=num_running + NUM_TURNOVER,
            max_batched_tokens=num_running + max(CHUNK_TOKENS, NUM_TURNOVER * SHORT_PROMPT_TOKENS),
            max_prefill_chunk=CHUNK_TOKENS,
            watermark=0.0,
        )
        self.scheduler = Scheduler(config, BlockManager((num_running + NUM_TURNOVER) * BLOCKS_A_REQUEST, BLOCK_SIZE))
        for i in range(num_running):
            self.add(64 + i % 64, max_tokens=MAX_MODEL_LEN)
        while any(not request.num_output_tokens for request in self.scheduler.requests.values()):
            plan = self.scheduler.schedule()
            self.scheduler.update(plan, sample(plan))

    def keep_a_prompt_coming(self) -> None:
        """Add a long prompt once the one before has ended."""
        if len(self.scheduler.requests) == self.num_running:
            self.add(LONG_PROMPT_TOKENS, max_tokens=1)

    def turn_over(self) -> None:
        """Add short prompts that end in the step that they come in."""
        for _ in range(NUM_TURNOVER):
            self.add(SHORT_PROMPT_TOKENS, max_tokens=1)

    def add(self, num_tokens: int, *, max_tokens: int) -> None:
        """Queue a request whose prompt has no prefix in common with any other."""
        number = next(self._numbers)
        request = Request(
            token_ids=[number, *range(num_tokens - 1)],
            request_id=str(number),
            params=SamplingParams(max_tokens=max_tokens, temperature=0.0),
            arrival_s=float(number),
            stop_token_ids=frozenset({50_000}),
        )
        self.scheduler.add(request)


def sample(plan: StepPlan) -> StepResult:
    """Answer a plan as an executor would, with the same token for everybody."""
    return StepResult(
        [1 if start + num_tokens == len(request.token_ids) else NO_TOKEN for request, start, num_tokens in plan.chunks]
    )
