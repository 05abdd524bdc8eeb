"""The panel's filters are the engine's: what they keep is what its `draw` can return, in the shares that they say."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infra_lab import LLM, SamplingParams
from infra_lab.engine.sampling.draw import draw
from infra_lab.errors import ConfigError, InvalidRequestError
from infra_lab.widgets.figures.token_distribution import FATES, entropy_bits, token_distribution
from infra_lab.widgets.sampling_panel import (
    SHOWN,
    distribution,
    filter_tokens,
    logits_along,
    sampling_panel,
)

TEXT = "Return the number of items in "
GRID = 4000

filters = st.builds(
    SamplingParams,
    temperature=st.floats(0.1, 3.0),
    top_k=st.integers(0, 12),
    min_p=st.floats(0.0, 0.6),
    top_p=st.floats(0.05, 1.0),
)


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM("tiny", dtype="float32", num_kv_blocks=16)


def random_logits(seed: int) -> torch.Tensor:
    return 2 * torch.randn(24, generator=torch.Generator().manual_seed(seed))


Filter = Callable[[torch.Tensor, SamplingParams], tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]


def worst_difference(filter_: Filter, params: SamplingParams, seed: int) -> float:
    """Compare with the engine on an even grid of uniforms: each token's share must be its probability, but for 1/GRID."""
    logits = random_logits(seed)
    order, _, final, fates = filter_(logits, params)
    drawn = draw(logits.expand(GRID, -1), [params] * GRID, [(i + 0.5) / GRID for i in range(GRID)])
    share = torch.bincount(drawn, minlength=24)[order] / GRID
    assert (share[fates > 0] == 0).all() or filter_ is not filter_tokens
    return float((share - final).abs().max())


@settings(max_examples=60, deadline=None)
@given(params=filters, seed=st.integers(0, 1000))
def test_every_token_has_the_share_that_the_engine_draws(params: SamplingParams, seed: int) -> None:
    assert worst_difference(filter_tokens, params, seed) <= 1.01 / GRID


def test_a_nucleus_taken_before_the_temperature_is_noticed() -> None:
    def untempered_nucleus(logits: torch.Tensor, params: SamplingParams) -> tuple[torch.Tensor, ...]:
        order, tempered, _, fates = filter_tokens(logits, SamplingParams(top_p=params.top_p))
        _, tempered, _, _ = filter_tokens(logits, SamplingParams(temperature=params.temperature))
        kept = tempered.masked_fill(fates > 0, 0.0)
        return order, tempered, kept / kept.sum(), fates

    params = SamplingParams(temperature=2.0, top_p=0.7)
    assert worst_difference(untempered_nucleus, params, 3) > 10 / GRID  # type: ignore[arg-type]


def test_the_logits_along_a_text_are_those_of_the_engine(llm: LLM) -> None:
    rows, token_ids = logits_along(llm, TEXT), llm.encode(TEXT)
    assert rows.shape == (len(token_ids), 272)
    for count in (1, 7, len(token_ids)):
        params = SamplingParams(max_tokens=1, temperature=0.0, logprobs=5)
        (scored,) = llm.generate([token_ids[:count]], params)[0].logprobs
        mine = torch.log_softmax(rows[count - 1], dim=0)
        assert [token for token, _ in scored.top] == mine.topk(5).indices.tolist()
        assert np.allclose([value for _, value in scored.top], mine.topk(5).values, atol=1e-3)


def test_the_logits_need_an_idle_engine_and_a_text(llm: LLM) -> None:
    with pytest.raises(InvalidRequestError, match="expected 1 to 256"):
        logits_along(llm, "")
    request_id = llm.core.add([1, 2], SamplingParams())
    with pytest.raises(InvalidRequestError, match="idle"):
        logits_along(llm, TEXT)
    llm.core.abort(request_id)


def test_the_figure_draws_each_token_once_by_its_fate(llm: LLM) -> None:
    params = SamplingParams(temperature=1.3, top_k=12, min_p=0.1, top_p=0.8, seed=0)
    view = distribution(logits_along(llm, TEXT)[-1], params, llm.tokenizer, num_draws=300)
    assert {FATES[fate] for fate in view.fates} == set(FATES)
    figure = token_distribution(view)
    own, kept, *dropped, draws = figure.data
    assert sum(own.y) == pytest.approx(1.0)
    assert sum(kept.y) == pytest.approx(1.0)
    assert sum(draws.y) == pytest.approx(1.0)
    assert view.mass(0) + sum(sum(bars.y) for bars in dropped) == pytest.approx(1.0)
    for trace, name in zip((kept, *dropped), FATES, strict=True):
        places = {i for i, value in enumerate(trace.y[:SHOWN]) if value}
        assert trace.name == name
        assert places == {i for i in range(SHOWN) if FATES[view.fates[i]] == name}


def test_entropy() -> None:
    assert entropy_bits(np.array([0.25] * 4)) == 2.0
    assert entropy_bits(np.array([1.0, 0.0])) == 0.0


def test_the_panel(llm: LLM) -> None:
    panel = sampling_panel(llm, TEXT)
    assert panel.result is not None
    assert panel.result.num_kept == 272
    panel.controls["top_k"].value = 5
    assert panel.result.num_kept == 5
    assert "top-k drops 267" in panel.summary
    panel.controls["temperature"].value = 0.0
    assert panel.result.drawn[0] == 1.0
    panel.reset()
    panel.set(position=3)
    assert panel.result.context == TEXT[:3]
    with pytest.raises(ConfigError):
        panel.set(top_p=0.0)
    bundle = panel._repr_mimebundle_()
    assert {"image/png", "text/plain"} <= set(bundle)


def test_no_label_is_a_blank_or_half_a_character(llm: LLM) -> None:
    view = distribution(logits_along(llm, TEXT)[-1], SamplingParams(seed=0), llm.tokenizer)
    assert len(view.labels) == SHOWN
    assert all(label.strip() and "\ufffd" not in label for label in view.labels)
