"""The next token of a real model under temperature, top-k, min-p and top-p: what each drops, and what the engine draws."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from infra_lab.engine.llm import LLM
from infra_lab.engine.sampling.draw import draw
from infra_lab.engine.sampling.uniform import uniform
from infra_lab.engine.step_input import prepare_step
from infra_lab.errors import InvalidRequestError
from infra_lab.models.tokenizer import Tokenizer
from infra_lab.sampling_params import SamplingParams
from infra_lab.scheduler.plan import Chunk, StepPlan
from infra_lab.scheduler.request import Request
from infra_lab.widgets.figures.token_distribution import FATES, TokenDistribution, entropy_bits, token_distribution
from infra_lab.widgets.knobs import knob
from infra_lab.widgets.live_tuner import LiveTuner

SHOWN = 20
"""Tokens with a bar of their own."""
# Choices, since a browser's slider rounds 0.9 to a multiple of its step and sends that back, maybe after the next change.
_TEMPERATURES = tuple(round(0.1 * i, 1) for i in range(21))
_MIN_PS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)
_TOP_PS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.99, 1.0)


@torch.inference_mode()
def logits_along(llm: LLM, text: str) -> torch.Tensor:
    """Return the logits after each token of a text, [T, V] float32 on the CPU: row i is what follows token i.

    Uses the first blocks of the KV memory: the engine must be idle, and its prefix cache is reset. Raises
    InvalidRequestError for open requests, and for a text that is empty or longer than context or memory.
    """
    token_ids, memory = llm.encode(text), llm.kv_memory
    room = min(llm.resolved.max_model_len, len(memory.layers[0]) * memory.block_size)
    if llm.core.has_work:
        raise InvalidRequestError("the engine has open requests; read logits when it is idle")
    if not 1 <= len(token_ids) <= room:
        raise InvalidRequestError(f"the text has {len(token_ids)} tokens; expected 1 to {room}")
    llm.core.scheduler.blocks.reset_prefix_cache()
    request = Request(token_ids=token_ids, request_id="logits", params=SamplingParams())
    request.block_table = list(range(-(-len(token_ids) // memory.block_size)))
    plan = StepPlan(step=0, chunks=[Chunk(request, 0, len(token_ids))])
    prepared = prepare_step(plan, block_size=memory.block_size, dtype=llm.resolved.dtype, device=llm.resolved.device)
    prepared.inputs.sample_rows = torch.arange(len(token_ids), device=llm.resolved.device)
    return llm.model.forward(prepared.inputs, memory.layers).float().cpu()


def filter_tokens(
    logits: torch.Tensor, params: SamplingParams
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Follow one row of logits [V] through the engine's filters; tokens that tie keep the order of their ids.

    Returns, the most probable token first: token ids, probabilities after the temperature, final probabilities (float64),
    and each token's index into FATES.
    """
    logits, order = logits.float().sort(descending=True, stable=True)
    weights = ((logits - logits[0]) / max(params.temperature, 1e-6)).exp()  # of the most probable token: 1
    fates = torch.zeros(len(logits), dtype=torch.int64)
    if params.top_k:
        fates[params.top_k :] = FATES.index("dropped by top-k")
    fates[(fates == 0) & (weights < params.min_p)] = FATES.index("dropped by min-p")
    if params.top_p < 1.0:
        left = weights.masked_fill(fates > 0, 0.0)
        cumulative = left.cumsum(0, dtype=torch.float64)
        outside = (fates == 0) & (cumulative - left >= params.top_p * cumulative[-1])
        outside[0] = False
        fates[outside] = FATES.index("dropped by top-p")
    kept = weights.double().masked_fill(fates > 0, 0.0)
    return order, weights.double() / weights.double().sum(), kept / kept.sum(), fates


def distribution(
    logits: torch.Tensor, params: SamplingParams, tokenizer: Tokenizer, *, context: str = "", num_draws: int = 500
) -> TokenDistribution:
    """Filter a row of logits [V] and have the engine's own `draw` draw from it, with the numbers of `params.seed`."""
    order, tempered, final, fates = filter_tokens(logits, params)
    seed = params.seed or 0
    numbers = [uniform(seed, index, 0) for index in range(num_draws)]
    drawn = draw(logits.float().expand(num_draws, -1), [params] * num_draws, numbers)
    counts = torch.bincount(drawn, minlength=len(logits))[order]
    model = torch.softmax(logits.double(), dim=0)[order]
    labels = tuple(_label(int(token_id), tokenizer) for token_id in order[:SHOWN])
    arrays: list[np.ndarray[Any, Any]] = [values.numpy() for values in (model, tempered, final, fates, counts)]
    return TokenDistribution(context, labels, *arrays)


def summarize(view: TokenDistribution) -> str:
    """Say in words what the figure shows."""
    dropped = [
        f"{name.removeprefix('dropped by ')} drops {int((view.fates == fate).sum())} ({view.mass(fate):.1%})"
        for fate, name in enumerate(FATES)
        if fate and (view.fates == fate).any()
    ]
    before, after = entropy_bits(view.model), entropy_bits(view.final)
    off = float(np.abs(view.drawn - view.final).max())
    kept = f"{view.num_kept} of {len(view.model)} tokens can be drawn"
    return (
        f"After “…{view.context[-32:]}”: {'; '.join([kept, *dropped])}. Entropy {before:.2f} → {after:.2f} bits. "
        f"Drawn shares are within {off:.1%} of the probabilities."
    )


def sampling_panel(llm: LLM, text: str, *, title: str = "What can come next?") -> LiveTuner[Any, TokenDistribution]:
    """Return a panel over the next-token distributions along a text, of a small vocabulary (each change draws anew).

    Its knobs: after how many tokens of the text, temperature, top-k, min-p, top-p, number of draws.
    """
    rows, token_ids, tokenizer = logits_along(llm, text), llm.encode(text), llm.tokenizer

    @dataclass(frozen=True)
    class Sampling:
        position: int = knob(
            len(token_ids), low=1, high=len(token_ids), label="After", unit="tokens", help="Slide along the text"
        )
        temperature: float = knob(
            1.0, choices=_TEMPERATURES, label="Temperature", help="Divides the logits, before any filter; 0: greedy"
        )
        top_k: int = knob(0, low=0, high=50, label="Top-k", help="Keep the k most probable; 0 keeps all")
        min_p: float = knob(
            0.0, choices=_MIN_PS, label="Min-p", help="Drop what is less probable than this share of the best"
        )
        top_p: float = knob(
            1.0, choices=_TOP_PS, label="Top-p", help="Keep the smallest set with this much of what is left"
        )
        draws: int = knob(500, choices=(50, 200, 500, 1000), label="Draws", help="Of the engine, with fixed seeds")

    def compute(knobs: Sampling) -> TokenDistribution:
        params = SamplingParams(
            temperature=knobs.temperature, top_k=knobs.top_k, min_p=knobs.min_p, top_p=knobs.top_p, seed=0
        )
        context = tokenizer.decode(token_ids[: knobs.position])
        return distribution(rows[knobs.position - 1], params, tokenizer, context=context, num_draws=knobs.draws)

    presets = {
        "As the model is": Sampling(),
        "Greedy": Sampling(temperature=0.0),
        "Top-k 5": Sampling(top_k=5),
        "Nucleus 0.9": Sampling(top_p=0.9),
        "Hot, with min-p": Sampling(temperature=1.6, min_p=0.1),
        "All three": Sampling(temperature=1.3, top_k=12, min_p=0.05, top_p=0.8),
    }
    return LiveTuner(Sampling, compute, token_distribution, summarize=summarize, presets=presets, title=title)


def _label(token_id: int, tokenizer: Tokenizer) -> str:
    """Write a token so that it can be read on an axis."""
    if token_id in tokenizer.special_token_ids or token_id >= tokenizer.vocab_size:
        return tokenizer.token_text(token_id) or f"id {token_id}"
    raw = tokenizer.token_bytes(token_id)
    text = raw.decode(errors="replace").replace(" ", "␣").replace("\n", "↵").replace("\t", "⇥")
    return text if text.isprintable() and "\ufffd" not in text else raw.hex(" ")
