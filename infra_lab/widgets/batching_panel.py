"""Batching under load: policy, budget, chunk, batch, wait and load, on a simulated GPU or on the real engine."""

from dataclasses import dataclass
from typing import Any

from infra_lab.clock import ComputeClock, VirtualClock
from infra_lab.data import data_path
from infra_lab.engine.shared_model import core_with
from infra_lab.models.config import ModelConfig
from infra_lab.models.tokenizer import load_tokenizer
from infra_lab.scheduler.config import SchedulerConfig
from infra_lab.scheduler.policies import BatchingPolicy, DynamicPolicy, StaticPolicy, policy_of
from infra_lab.simulator.arrivals import PoissonArrivals
from infra_lab.simulator.cost_roofline import RooflineStepCost
from infra_lab.simulator.executor import simulated_engine
from infra_lab.simulator.open_loop import VOCAB_SIZE
from infra_lab.simulator.report import ServiceLevel
from infra_lab.simulator.traced_request import TracedRequest
from infra_lab.simulator.workload import RequestShape, lognormal_shapes
from infra_lab.simulator.workloads import independent_requests
from infra_lab.widgets.batching_run import BatchRun, serve
from infra_lab.widgets.figures.batch_lanes import batch_lanes
from infra_lab.widgets.generation_run import shared_engine
from infra_lab.widgets.knobs import knob
from infra_lab.widgets.live_tuner import LiveTuner, Progress
from kernels.chips import CHIPS

SIMULATED, REAL = "H100, simulated", "tiny, real"
"""Llama-2-70B by the roofline of a GPU that is not here, and the bundled model on this machine."""
NUM_REQUESTS, LONG_EVERY, LONG_TOKENS = 32, 8, 900
"""Every eighth prompt is long, so that there is somebody to be held up by."""
MAX_MODEL_LEN = 1024
LIMITS = ServiceLevel(ttft_s=0.25, tpot_s=0.05)
LLAMA_2_70B = ModelConfig(
    architecture="llama", vocab_size=32_000, hidden_size=8192, intermediate_size=28_672, num_layers=80, num_heads=64,
    num_kv_heads=8, head_dim=128, max_position=4096,
)  # fmt: skip
"""Sizes of Touvron 2023."""
COST = RooflineStepCost(chip=CHIPS["H100"], model=LLAMA_2_70B, unit="fp8", weight_bytes=1, kv_bytes=2)
KV_BLOCKS = 1500
"""Of 16 tokens: 7.9 GB of keys and values in 16 bits, which 80 GB leave beside 69 GB of weights, nearly."""


@dataclass(frozen=True)
class Batching:
    """What is set before a run."""

    engine: str = knob(
        SIMULATED,
        choices=(SIMULATED, REAL),
        label="Engine",
        help="Llama-2-70B by the roofline, or the bundled model on this machine; the same scheduler",
    )
    policy: str = knob(
        "chunked-prefill",
        choices=("static", "dynamic", "prefill-first", "continuous", "chunked-prefill", "sjf"),
        label="Policy",
        help="Who comes in, when, and whether prompts are cut",
    )
    load: int = knob(10, choices=(1, 2, 5, 10, 15, 20, 30, 50, 100, 200), label="Load", unit="requests/s")
    max_batch: int = knob(32, choices=(1, 2, 4, 8, 16, 32), label="Max batch", unit="requests")
    max_wait: int = knob(
        5, choices=(0, 2, 5, 10, 20, 50, 100, 200), label="Max wait", unit="ms", help="Of a batch; policy dynamic only"
    )
    budget: int = knob(
        1024,
        choices=(64, 128, 256, 512, 1024, 2048),
        label="Token budget",
        help="Of a step; at most so many are computed",
    )
    chunk: int = knob(
        1024,
        choices=(32, 64, 128, 256, 512, 1024),
        label="Chunk",
        unit="tokens",
        help="A prompt's share of a step, at most; policies that cut prompts only",
    )


PRESETS = {
    "Chapter: 8, 5 ms": Batching(policy="dynamic", load=5, max_batch=8, max_wait=5),
    "Chapter: 32, 10 ms": Batching(policy="dynamic", load=100, max_batch=32, max_wait=10),
    "Static": Batching(policy="static", max_batch=8),
    "Continuous": Batching(policy="continuous"),
    "Small chunks": Batching(budget=256, chunk=128),
    "For real": Batching(engine=REAL, load=20, budget=256, chunk=128),
}


def scheduler_config(knobs: Batching) -> SchedulerConfig:
    """Return the limits that the knobs mean. A policy that computes prompts whole gets a budget that holds the longest."""
    policy: str | BatchingPolicy = knobs.policy
    if knobs.policy == "static":
        policy = StaticPolicy(batch_size=knobs.max_batch)
    elif knobs.policy == "dynamic":
        wait_s = knobs.max_wait / 1e3
        policy = DynamicPolicy(
            batch_size=knobs.max_batch, max_wait_s=wait_s, peak_size=knobs.max_batch, peak_wait_s=wait_s
        )
    chunks = policy_of(policy).chunks_prompts
    return SchedulerConfig(
        policy=policy,
        max_model_len=MAX_MODEL_LEN,
        max_num_seqs=knobs.max_batch,
        max_batched_tokens=knobs.budget if chunks else max(knobs.budget, MAX_MODEL_LEN),
        max_prefill_chunk=min(knobs.chunk, knobs.budget) if chunks else None,
    )


def workload(load: float, num_requests: int = NUM_REQUESTS) -> list[TracedRequest]:
    """Return the panel's requests, at Poisson times: the same ones at every load, only nearer to each other."""
    shapes = lognormal_shapes(NUM_REQUESTS, median_prompt=100, median_output=32, max_total=MAX_MODEL_LEN, seed=0)
    shapes[LONG_EVERY - 1 :: LONG_EVERY] = [
        RequestShape(LONG_TOKENS, min(shape.output_tokens, MAX_MODEL_LEN - LONG_TOKENS))
        for shape in shapes[LONG_EVERY - 1 :: LONG_EVERY]
    ]
    times_s = PoissonArrivals(rate_per_s=load).times_s(num_requests=num_requests, seed=1)
    return independent_requests(times_s, shapes[:num_requests])


def run_batching(
    knobs: Batching, progress: Progress = lambda fraction, text="": None, *, num_requests: int = NUM_REQUESTS
) -> BatchRun:
    """Serve the panel's requests, or the first so many of them, with these knobs."""

    def told(done: int) -> None:
        progress(done / num_requests, f"{done} of {num_requests} requests are done")

    requests, config = workload(knobs.load, num_requests), scheduler_config(knobs)
    if knobs.engine == SIMULATED:
        core = simulated_engine(
            config,
            load_tokenizer(data_path("tiny")),
            vocab_size=VOCAB_SIZE,
            num_kv_blocks=KV_BLOCKS,
            enable_prefix_cache=False,
            cost=COST,
            clock=VirtualClock(),
        )
        return serve(core, requests, LIMITS)
    engine = shared_engine("tiny")
    with engine.lock:
        return serve(core_with(engine.llm, config, ComputeClock()), requests, LIMITS, progress=told)


def in_words(run: BatchRun) -> str:
    """Say what the figure shows."""
    report, slo = run.report, run.slo
    assert report.ttft_s is not None
    assert report.tpot_s is not None
    assert report.itl_s is not None
    assert report.good_share is not None
    assert slo.ttft_s is not None
    assert slo.tpot_s is not None
    mean_batch = report.request_steps / report.num_steps
    return (
        f"Goodput {report.goodput_per_s:.1f} of {report.requests_per_s:.1f} requests/s: {report.good_share:.0%} kept both "
        f"limits, first token within {slo.ttft_s * 1e3:.0f} ms and {slo.tpot_s * 1e3:.0f} ms a token on average. "
        f"TTFT {_spread(report.ttft_s)}, TPOT {_spread(report.tpot_s)}, longest gap {report.itl_s.max * 1e3:.0f} ms. "
        f"{report.output_tokens_per_s:,.0f} tokens/s, {mean_batch:.1f} requests a step, {report.busy_share:.0%} busy, "
        f"KV up to {report.kv_use_max:.0%}."
    )


def _spread(spread: Any) -> str:
    return f"{spread.p50 * 1e3:.0f} ms at the median and {spread.p99 * 1e3:.0f} ms at p99"


class BatchingPanel(LiveTuner[Batching, BatchRun]):
    """The panel. A simulated change is computed at once, while the knob moves; the real engine takes seconds and runs on a
    thread of its own, where only the newest change counts and Stop ends it. A change to the simulation ends a real run.
    """

    def __init__(self, *, title: str = "Who waits for whom?") -> None:
        super().__init__(
            Batching,
            run_batching,
            batch_lanes,
            summarize=in_words,
            presets=PRESETS,
            title=title,
            slow=lambda knobs: knobs.engine == REAL,
        )
