"""The scheduler and the prefix cache alone: plain Python, no model.

What a step costs here is time in which an accelerator waits, so the limits are absolute: microseconds a request.
"""

import time
from collections.abc import Callable, Sequence
from statistics import median

from infra_lab.bench.prefix_cache import measure_prefix_cache
from infra_lab.bench.report import BenchReport, BenchRow, at_most
from infra_lab.paged_kv.block_manager import BlockManager
from infra_lab.sampling_params import SamplingParams
from infra_lab.scheduler.config import SchedulerConfig
from infra_lab.scheduler.plan import NO_TOKEN, StepResult
from infra_lab.scheduler.request import Request
from infra_lab.scheduler.scheduler import Scheduler

ASKED_MS = 0.4
"""For one schedule and update with 256 running requests."""


def run(*, quick: bool, say: Callable[[str], None]) -> BenchReport:
    """Measure the scheduler's step at several sizes, and the prefix cache at several cache sizes."""
    return BenchReport("scheduler", scheduler_rows(quick=quick, say=say))


def scheduler_rows(*, quick: bool, say: Callable[[str], None]) -> list[BenchRow]:
    """Rows for the scheduler's step and for the prefix cache."""
    say("scheduler steps")
    sizes = (256, 1024, 4096)
    times_ms = [step_ms(size, num_steps=50 if quick else 300) for size in sizes]
    rows = [at_most(f"schedule + update, {sizes[0]} running", times_ms[0], "ms", "asked for", ASKED_MS, 1.0)]
    for size, value in zip(sizes[1:], times_ms[1:], strict=True):
        linear = times_ms[0] * size / sizes[0]
        name = f"schedule + update, {size} running"
        rows.append(at_most(name, value, "ms", f"linear from {sizes[0]}", linear, 1.5))
    say("prefix cache")
    measured = measure_prefix_cache(2_000 if quick else 10_000)
    smallest = measured[0]
    rows += [
        at_most(
            f"prefix cache, {row.cache_blocks:,} blocks",
            row.p50_us,
            "µs/request",
            f"with {smallest.cache_blocks:,} blocks",
            smallest.p50_us,
            None if row is smallest else 1.5,
            f"{row.num_requests:,} requests, {row.hit_rate:.0%} of tokens hit; hashing alone {row.hashing_us:.0f} µs",
        )
        for row in measured
    ]
    return rows


def step_ms(num_running: int, num_steps: int = 300) -> float:
    """Median milliseconds of one `schedule` and one `update` with that many requests decoding."""
    blocks = BlockManager(num_running * 40, 16)
    config = SchedulerConfig(
        max_model_len=2048, max_num_seqs=num_running, max_batched_tokens=max(8192, num_running), watermark=0.0
    )
    scheduler = Scheduler(config, blocks)
    for i in range(num_running):
        request = Request(
            token_ids=[(7 * i + j) % 1000 for j in range(64 + i % 64)],
            request_id=str(i),
            params=SamplingParams(max_tokens=500, temperature=0.0),
            stop_token_ids=frozenset({50_000}),
        )
        scheduler.add(request)
    while len(scheduler.running) < num_running or _is_prefilling(scheduler.running):
        _step_s(scheduler)
    return median(_step_s(scheduler) for _ in range(num_steps)) * 1e3


def _is_prefilling(running: Sequence[Request]) -> bool:
    return any(request.num_computed < request.num_prompt_tokens for request in running)


def _step_s(scheduler: Scheduler) -> float:
    begin = time.perf_counter()
    plan = scheduler.schedule()
    scheduled = time.perf_counter()
    tokens = [
        1 if chunk.start + chunk.num_tokens == len(chunk.request.token_ids) else NO_TOKEN for chunk in plan.chunks
    ]
    result = StepResult(tokens)
    computed = time.perf_counter()
    scheduler.update(plan, result)
    return (scheduled - begin) + (time.perf_counter() - computed)
