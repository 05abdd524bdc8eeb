"""The executor that computes nothing: tokens come from a rule, time from a cost model.

Everything above it is the real thing. A scheduler, a block manager or a server cannot tell it from a model, so a lesson
can run the same requests on either, and a cluster of a thousand GPUs fits into one process.
"""

from collections.abc import Callable

from infra_lab.clock import Clock, VirtualClock
from infra_lab.engine.core import EngineCore
from infra_lab.models.tokenizer import Tokenizer
from infra_lab.paged_kv.block_manager import BlockManager
from infra_lab.scheduler.config import SchedulerConfig
from infra_lab.scheduler.plan import NO_TOKEN, StepPlan, StepResult
from infra_lab.scheduler.request import Request
from infra_lab.scheduler.scheduler import Scheduler
from infra_lab.simulator.cost import LinearStepCost, StepCost

NextToken = Callable[[Request], int]
"""Chooses the token that follows a request's tokens; deterministic, or two runs differ."""

_TEXT = b"the quick brown fox jumps over the lazy dog. "


def cycling_text(request: Request) -> int:
    """Write one sentence over and over, byte by byte; samples of one prompt start at different letters."""
    return _TEXT[(request.num_output_tokens + 4 * request.sample_index) % len(_TEXT)]


class SimulatedExecutor:
    """Lets the clock go by for each plan and samples by rule (see `Executor` for the contract)."""

    def __init__(self, clock: Clock, cost: StepCost, next_token: NextToken = cycling_text) -> None:
        self._clock, self._cost, self._next_token = clock, cost, next_token

    def execute(self, plan: StepPlan) -> StepResult:
        """Return one token for each chunk that reaches its request's last token, after the plan's time has gone by."""
        return self._wait(plan, self._cost.step_s(plan))

    def launch(self, plan: StepPlan) -> Callable[[], StepResult]:
        """Let the plan's time begin now, for a device of its own; who asks for the result waits for what is left of it."""
        end_s = self._clock.now() + self._cost.step_s(plan)
        return lambda: self._wait(plan, end_s - self._clock.now())

    def _wait(self, plan: StepPlan, seconds: float) -> StepResult:
        if seconds > 0:
            self._clock.sleep(seconds)
        token_ids = [
            self._next_token(request)
            if start + num_tokens == len(request.token_ids) and not request.is_finished
            else NO_TOKEN
            for request, start, num_tokens in plan.chunks
        ]
        return StepResult(token_ids, timings_s={"forward": max(0.0, seconds)})

    def close(self) -> None:
        """Nothing is held."""


def simulated_engine(
    config: SchedulerConfig,
    tokenizer: Tokenizer,
    *,
    vocab_size: int,
    num_kv_blocks: int,
    block_size: int = 16,
    enable_prefix_cache: bool = True,
    cost: StepCost | None = None,
    clock: Clock | None = None,
    next_token: NextToken = cycling_text,
    overlap: bool = False,
) -> EngineCore:
    """Connect the real scheduler, block manager and step loop to a simulated executor.

    Without a clock it runs on a virtual one, so that a run takes as long as the scheduler's arithmetic and reports the
    times that the cost model says. On a `CPUClock` a step takes the host's own time too, as it was measured, beside or
    (overlap) during that of the simulated device. Raises ConfigError for impossible sizes.
    """
    clock = clock or VirtualClock()
    blocks = BlockManager(num_kv_blocks, block_size, enable_prefix_cache=enable_prefix_cache)
    executor = SimulatedExecutor(clock, cost or LinearStepCost(), next_token)
    return EngineCore(
        Scheduler(config, blocks), executor, tokenizer, vocab_size=vocab_size, clock=clock, overlap=overlap
    )
