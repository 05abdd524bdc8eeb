"""A panel of a lesson's weight, for timing: thirty-two requests through the real scheduler at every move of a slider."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from infra_lab.data import data_path
from infra_lab.engine.recorder import StepRecord
from infra_lab.models.tokenizer import Tokenizer, load_tokenizer
from infra_lab.sampling_params import SamplingParams
from infra_lab.scheduler.config import SchedulerConfig
from infra_lab.simulator.executor import simulated_engine

if TYPE_CHECKING:
    from infra_lab.widgets import LiveTuner

NUM_REQUESTS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the scheduler may spend."""

    max_batched_tokens: int
    num_kv_blocks: int


def run_requests(limits: Limits) -> list[StepRecord]:
    """Run the requests to their ends on a simulated executor; return the recorder's steps."""
    config = SchedulerConfig(max_model_len=256, max_num_seqs=16, max_batched_tokens=limits.max_batched_tokens)
    engine = simulated_engine(config, _tokenizer(), vocab_size=256, num_kv_blocks=limits.num_kv_blocks)
    rng = random.Random(0)
    for _ in range(NUM_REQUESTS):
        prompt = [rng.randrange(97, 123) for _ in range(rng.randint(16, 128))]
        engine.add(prompt, SamplingParams(max_tokens=rng.randint(4, 24), temperature=0.0, ignore_eos=True))
    while engine.has_work:
        engine.step()
    return engine.recorder.steps


def scheduler_panel() -> "LiveTuner[Any, Sequence[StepRecord]]":
    """Build the panel. Its two sliders are the step's token budget and the size of the KV pool."""
    from infra_lab.widgets import LiveTuner, figures, knob

    @dataclass(frozen=True)
    class Params:
        max_batched_tokens: int = knob(128, low=32, high=256, label="Token budget", unit="tokens")
        num_kv_blocks: int = knob(64, low=32, high=128, label="KV pool", unit="blocks")

    def compute(params: Params) -> list[StepRecord]:
        return run_requests(Limits(max_batched_tokens=params.max_batched_tokens, num_kv_blocks=params.num_kv_blocks))

    def summarize(steps: Sequence[StepRecord]) -> str:
        return f"{len(steps)} steps, {sum(len(step.preempted) for step in steps)} preemptions."

    return LiveTuner(Params, compute, figures.step_timeline, summarize=summarize, title="The scheduler at work")


@cache
def _tokenizer() -> Tokenizer:
    return load_tokenizer(data_path("tiny"))
