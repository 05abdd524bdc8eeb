"""Three engines on one workload: what is shared, how much comes, what is proposed; on a simulated GPU."""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from infra_lab.engine.presets import PRESETS as ENGINES
from infra_lab.models.config import ModelConfig
from infra_lab.simulator.arrivals import PoissonArrivals
from infra_lab.simulator.cost_roofline import RooflineStepCost
from infra_lab.simulator.traced_request import Span, TracedRequest
from infra_lab.widgets.batching_panel import COST
from infra_lab.widgets.engines_run import EngineRun, Machine, Speculating, serve_with
from infra_lab.widgets.figures.engine_comparison import engine_comparison
from infra_lab.widgets.knobs import knob
from infra_lab.widgets.live_tuner import LiveTuner

COMPARED = ("fastertransformer-like", "vllm-like", "sglang-like")
LLAMA_2_7B = ModelConfig(
    architecture="llama", vocab_size=32_000, hidden_size=4096, intermediate_size=11_008, num_layers=32, num_heads=32,
    num_kv_heads=32, head_dim=128, max_position=4096,
)  # fmt: skip
"""Sizes of Touvron 2023: the draft."""
DRAFT_COST: RooflineStepCost = replace(COST, model=LLAMA_2_7B)
KV_BLOCKS = 750
"""Of 16 tokens: 3.9 GB of keys and values in 16 bits, so that the panel's few requests fill them."""
MACHINE = Machine(cost=COST, draft_cost=DRAFT_COST, num_kv_blocks=KV_BLOCKS)
"""Llama-2-70B in FP8 on an H100, as in the panel on batching; proposals come from Llama-2-7B on the same GPU."""

NUM_REQUESTS, PROMPT_TOKENS, QUESTION_TOKENS, THINK_S = 16, 512, 24, 0.5
_STREAMS = 1000
"""Of a conversation."""


@dataclass(frozen=True)
class Comparison:
    """What is set before a run."""

    engine: str = knob(COMPARED[0], choices=COMPARED, label="Look into", help="Whose memory is shown over time")
    load: int = knob(10, choices=(1, 2, 5, 10, 20, 50), label="Load", unit="conversations/s")
    shared: int = knob(
        50,
        choices=(0, 25, 50, 75, 95),
        label="Shared prompt",
        unit="%",
        help="Of the first 512 tokens, the same for all",
    )
    turns: int = knob(
        2, choices=(1, 2, 4), label="Turns", help="Of a conversation; each has all before it in its prompt"
    )
    drafts: int = knob(0, choices=(0, 1, 2, 3, 4, 6, 8), label="Proposals", unit="tokens", help="To a decode; 0: none")
    acceptance: int = knob(
        70, choices=(20, 40, 50, 60, 70, 80, 90), label="Accepted", unit="%", help="Of the proposals that are reached"
    )


PRESETS = {
    "Nothing in common": Comparison(shared=0, turns=1),
    "One system prompt": Comparison(shared=95, turns=1),
    "Long conversations": Comparison(engine="sglang-like", shared=50, turns=4),
    "Good proposals, few users": Comparison(engine="vllm-like", load=1, drafts=4, acceptance=80),
    "Bad proposals": Comparison(engine="vllm-like", load=1, drafts=8, acceptance=20),
}


def conversations(load: float, shared: float, turns: int, num_requests: int = NUM_REQUESTS) -> list[TracedRequest]:
    """Return so many requests in conversations of `turns` turns; a share `shared` of the first prompt is everybody's.

    Answers have lengths around 30 tokens, log-normal; the next question comes half a second after an answer.
    """
    starts_s = PoissonArrivals(rate_per_s=load).times_s(num_requests=num_requests // turns, seed=1)
    lengths = np.exp(np.random.default_rng(0).normal(np.log(30), 0.7, num_requests)).clip(4, 160).astype(int).tolist()
    common = round(PROMPT_TOKENS * shared)
    requests: list[TracedRequest] = []
    for number, start_s in enumerate(starts_s, start=1):
        spans = (Span(0, common), Span(_STREAMS * number, PROMPT_TOKENS - common))
        history = [span for span in spans if span.num_tokens]
        for turn in range(turns):
            answer = Span(_STREAMS * number + 2 * turn + 1, lengths[len(requests)])
            if turn:
                history.append(Span(_STREAMS * number + 2 * turn, QUESTION_TOKENS))
            requests.append(
                TracedRequest(
                    arrival_s=THINK_S if turn else start_s,
                    spans=tuple(history),
                    output_tokens=answer.num_tokens,
                    answer_stream=answer.stream,
                    follows=len(requests) - 1 if turn else None,
                )
            )
            history.append(answer)
    return requests


@lru_cache(maxsize=256)
def _run(engine: str, load: int, shared: int, turns: int, speculating: Speculating) -> EngineRun:
    return serve_with(ENGINES[engine].settings, conversations(load, shared / 100, turns), MACHINE, speculating)


def compare(knobs: Comparison) -> tuple[dict[str, EngineRun], str]:
    """Serve the workload with each engine; return the runs, and whose pool is looked into."""
    speculating = Speculating(knobs.drafts, knobs.acceptance / 100 if knobs.drafts else 0.0)
    runs = {engine: _run(engine, knobs.load, knobs.shared, knobs.turns, speculating) for engine in COMPARED}
    return runs, knobs.engine


def in_words(result: tuple[dict[str, EngineRun], str]) -> str:
    """Say what the figure shows."""
    runs, _ = result
    return " ".join(
        f"{name}: {run.computed_prompt_tokens / run.prompt_tokens:.0%} of the prompt tokens computed, first token after "
        f"{np.median(run.ttft_s) * 1e3:,.0f} ms, {np.median(run.tpot_s) * 1e3:.0f} ms a token, "
        f"{run.kv_utilisation:.0%} of the reserved KV slots hold a token, {run.tokens_per_s:,.0f} tokens/s."
        for name, run in runs.items()
    )


def engines_panel(*, title: str = "Which engine, and why?") -> LiveTuner[Comparison, tuple[dict[str, EngineRun], str]]:
    """Return the panel."""
    return LiveTuner(
        Comparison,
        compare,
        lambda result: engine_comparison(*result),
        summarize=in_words,
        presets=PRESETS,
        title=title,
    )
