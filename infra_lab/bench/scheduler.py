"""The scheduler and the prefix cache alone, plain Python and no model; then batching policies, on an engine and simulated.

What a step costs here is time in which an accelerator waits, so the limit is absolute: milliseconds a step.
"""

from collections.abc import Callable

from infra_lab.bench.multi_turn import multi_turn_rows
from infra_lab.bench.prefix_cache import measure_prefix_cache
from infra_lab.bench.report import BenchReport, BenchRow, at_most
from infra_lab.bench.scheduler_policies import policy_rows
from infra_lab.bench.scheduler_step import measure_scheduler_step

ASKED_MS = 0.4
"""For one schedule and update with 256 running requests."""
SIZES = (256, 1024, 4096)


def run(*, quick: bool, say: Callable[[str], None]) -> BenchReport:
    """Measure the scheduler's step at several sizes, the prefix cache at several cache sizes, and all policies on one trace."""
    return BenchReport("scheduler", scheduler_rows(quick=quick, say=say) + policy_rows(quick=quick, say=say))


def scheduler_rows(*, quick: bool, say: Callable[[str], None]) -> list[BenchRow]:
    """Rows for the scheduler's step, for the prefix cache, and for its kinds of index."""
    say("scheduler steps")
    steps = [row for row in measure_scheduler_step(SIZES, num_steps=50 if quick else 300) if row.kind != "turnover"]
    smallest = steps[0]
    rows = [at_most("schedule+update, 256 run", smallest.p50_ms, "ms", "asked for", ASKED_MS, 1.0)]
    rows += [
        at_most(
            f"  {row.num_running} run, {row.kind}",
            row.p50_ms,
            "ms",
            f"linear from {SIZES[0]} decodes",
            smallest.p50_ms * row.num_running / SIZES[0],
            1.5,
        )
        for row in steps[1:]
    ]
    say("prefix cache")
    measured = measure_prefix_cache(2_000 if quick else 10_000)
    rows += [
        at_most(
            f"prefix hit, {row.cache_blocks // 1024}k blocks",
            row.p50_us,
            "µs",
            f"with {measured[0].cache_blocks // 1024}k blocks",
            measured[0].p50_us,
            None if row is measured[0] else 1.5,
            f"{row.num_requests:,} requests, {row.hit_rate:.0%} of tokens hit; hashing {row.hashing_us:.0f} µs of it",
        )
        for row in measured
    ]
    return rows + multi_turn_rows(quick=quick, say=say)
