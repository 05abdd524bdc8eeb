"""The time that work takes on the GPU, also where launching it takes longer.

    GPU    … │ clear the cache │ wait             │ begin │ work │ end │ clear the cache │ …
    CPU    … │ launches the lot, while the GPU is waiting         │ launches the next … │

Between two events on an idle GPU lies the time of the CPU too: tens of microseconds a launch from Python, more than most
kernels of a decode step take. So the GPU is given something to wait for until all has been launched. The L2 cache is cleared
before each run, as a model's other layers would have done. Work that makes the CPU wait for the GPU is measured with its
waiting.
"""

from collections.abc import Callable
from statistics import median
from typing import Any

import torch

CACHE_BYTES = 256 << 20
"""More than any L2 cache holds."""
WAIT_CYCLES = 1_000_000
"""Half a millisecond: some ten launches."""
MOST_RUNS, LEAST_RUNS = 100, 7


def gpu_seconds(function: Callable[[], Any], budget_s: float = 0.15) -> float:
    """Return the median time of a call on the current stream's GPU, from as many runs as fit into the budget, 7 at least.

    It is called once before, to compile what it compiles. Raises what it raises.
    """
    function()
    cache = torch.empty(CACHE_BYTES, dtype=torch.int8, device="cuda")
    once = _run(function, cache, 3)
    return _run(function, cache, max(LEAST_RUNS, min(MOST_RUNS, int(budget_s / max(once, 1e-6)))))


def _run(function: Callable[[], Any], cache: torch.Tensor, runs: int) -> float:
    event: Any = torch.cuda.Event  # torch has no types for it
    pairs = [(event(enable_timing=True), event(enable_timing=True)) for _ in range(runs)]
    torch.cuda.synchronize()
    for begin, end in pairs:
        cache.zero_()
        torch.cuda._sleep(WAIT_CYCLES)  # type: ignore[no-untyped-call]
        begin.record()
        function()
        end.record()
    torch.cuda.synchronize()
    times_ms: list[float] = [begin.elapsed_time(end) for begin, end in pairs]
    return median(times_ms) / 1e3
