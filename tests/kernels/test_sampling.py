"""Sampling against a loop over the sorted row, Philox against its authors' numbers, and draws against their distribution."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import dispatch
from kernels.philox import philox
from kernels.sampling import NO_TOKEN, filter_logits, launch, sample
from kernels.spec import KernelConfig
from tests.kernels.conftest import DEVICE, poisoned

Row = tuple[float, int, float, float]
"""Temperature, top-k, top-p, min-p."""
ROWS = st.tuples(
    st.sampled_from([0.0, 1e-7, 0.3, 1.0, 2.5]),
    st.sampled_from([0, 1, 2, 7, 40, 1000]),
    st.sampled_from([1e-6, 0.3, 0.9, 0.999, 1.0]),
    st.sampled_from([0.0, 0.0, 0.05, 1.0]),
)
SLACK = 1e-5
"""How far a float32 exponential may move a limit."""


def parameters(rows: list[Row]) -> tuple[torch.Tensor, ...]:
    dtypes = (torch.float32, torch.int32, torch.float32, torch.float32)
    columns = zip(*rows, strict=True) if rows else ((), (), (), ())
    return tuple(
        torch.tensor(list(column), dtype=dtype, device=DEVICE) for column, dtype in zip(columns, dtypes, strict=True)
    )


def kept_by_hand(logits: list[float], row: Row, slack: float) -> set[int]:
    """Which tokens may be drawn, by the definitions, token by token; a positive slack lets in what is on a border."""
    temperature, top_k, top_p, min_p = row
    order = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
    if temperature == 0:
        return {order[0]}
    best = logits[order[0]]
    ratios = [math.exp((logits[token] - best) / max(temperature, 1e-6)) for token in order]
    ratios = [ratio for ratio in ratios[: top_k or None] if ratio >= min_p * (1 - slack)]
    total, before, kept = math.fsum(ratios), 0.0, set[int]()
    for token, ratio in zip(order, ratios, strict=False):
        if top_p < 1 and before >= top_p * (1 + slack) * total:
            break
        kept.add(token)
        before += ratio
    return kept


def some_logits(num_rows: int, vocab_size: int, dtype: torch.dtype, kind: str, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    wide = torch.randn(num_rows, vocab_size + 3, generator=generator) * {"flat": 0.1, "huge": 300.0}.get(kind, 3.0)
    if kind == "ties":
        wide = wide.round()
    if kind == "neighbours":  # floats with none between them, where a bisection has no room left
        wide = 1.0 + wide.abs().round() * 2.0**-23
    if kind == "masked":
        wide = wide.masked_fill(torch.rand(wide.shape, generator=generator) < 0.9, float("-inf"))
        wide[:, vocab_size // 2] = 0.0
    return wide.to(dtype).to(DEVICE)[:, :vocab_size]  # rows with a gap between them


@settings(max_examples=50, deadline=None)
@given(
    st.lists(ROWS, max_size=2), st.sampled_from([1, 2, 50, 130]), st.sampled_from([16, 32, 256]),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    st.sampled_from(["normal", "flat", "huge", "ties", "neighbours", "masked"]), st.integers(0, 2**31),
)  # fmt: skip
def test_what_is_kept(rows: list[Row], vocab_size: int, block: int, dtype: torch.dtype, kind: str, seed: int) -> None:
    """Blocks smaller than what is kept, and larger than the row, so that all ways of the search are gone."""
    logits, by_row = some_logits(len(rows), vocab_size, dtype, kind, seed), parameters(rows)
    kept = torch.full(logits.shape, float("nan"), dtype=dtype, device=DEVICE)
    with poisoned():
        launch(logits, kept, *by_row, by_row[1], by_row[1], draws=False, config=KernelConfig({"BLOCK": block}, 4, 1))
    for values, out, row in zip(logits.cpu(), kept.cpu(), rows, strict=True):
        row = (*row[:2], *by_row[2].new_tensor(row[2:]).tolist())  # as float32 has them
        numbers = values.double().tolist()
        certain, possible = (kept_by_hand(numbers, row, slack) for slack in (-SLACK, SLACK))
        tokens = {token for token, number in enumerate(numbers) if math.isfinite(number)}
        chosen = {token for token, number in enumerate(out.tolist()) if number != float("-inf")}
        assert certain & tokens <= chosen <= possible, row
        assert all(out[token] == values[token] for token in chosen)


@pytest.mark.parametrize("block", [16, 64])
def test_equals_at_the_border_are_kept_by_lowest_index(block: int) -> None:
    logits = torch.tensor([[1.0, 2.0] + [1.0] * 40 + [0.0] * 20, [-0.0, 0.0] * 31], device=DEVICE)
    by_row = parameters([(1.0, 4, 1.0, 0.0), (1.0, 0, 0.5, 0.0)])
    kept = torch.empty_like(logits)
    launch(logits, kept, *by_row, by_row[1], by_row[1], draws=False, config=KernelConfig({"BLOCK": block}, 4, 1))
    assert kept[0].isfinite().nonzero().flatten().tolist() == [0, 1, 2, 3]
    assert kept[1].isfinite().nonzero().flatten().tolist() == list(range(31))


def test_philox_is_its_authors() -> None:
    """The first two of four words that Random123's kat_vectors lists for philox4x32-10."""
    assert philox(0, 0) == 0x6627E8D5_E169C58D


def expected(logits: list[float], kept: set[int], temperature: float, random: int) -> set[int]:
    """Which tokens the inverse of the cumulative distribution may give, exactly but for what rounding moves."""
    best = max(logits[token] for token in kept)
    ratios = {token: math.exp((logits[token] - best) / temperature) for token in sorted(kept)}
    target = float(Fraction(random, 2**64)) * math.fsum(ratios.values())
    reached, possible = 0.0, set()
    for token, ratio in ratios.items():
        if reached - 1e-5 <= target <= reached + ratio + 1e-5:
            possible.add(token)
        reached += ratio
    return possible


@settings(max_examples=25, deadline=None)
@given(
    ROWS.filter(lambda row: row[0] > 0.1), st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**40), st.integers(0, 99)
)
def test_a_draw_is_the_row_s_own(row: Row, seed: int, step: int, content: int) -> None:
    """The same token alone, or among others that want something else, and whatever the block."""
    rows = [(0.0, 0, 1.0, 0.0), row]
    logits, by_row = some_logits(2, 90, torch.float32, "normal", content), parameters(rows)
    counters = [torch.tensor([7, number], device=DEVICE) for number in (seed, step)]
    with poisoned():
        drawn = sample(logits, *by_row, *counters)
    small = torch.empty_like(drawn[1:])
    alone = [column[1:] for column in (logits, *by_row, *counters)]
    launch(alone[0], small, *alone[1:], draws=True, config=KernelConfig({"BLOCK": 32}, 4, 1))
    assert drawn[0] == logits[0].argmax()
    assert drawn[1] == small[0]
    numbers = logits[1].double().tolist()
    kept = kept_by_hand(numbers, row, SLACK)
    assert drawn[1].item() in expected(numbers, kept, row[0], philox(seed % 2**64, step))


def test_draws_follow_the_distribution() -> None:
    """Chi-squared over 20,000 draws: below 27.9, its 99.95th percentile for 8 degrees of freedom. What draws them all is the
    reference where kernels are interpreted, and the kernel must agree with it on the first of them."""
    num_rows, num_launched = 20_000, 20_000 if DEVICE.type == "cuda" else 300
    logits = torch.tensor([0.0, 1.0, 2.0, float("-inf"), 0.5, -1.0, 1.5, 0.0, -2.0, 1.0], device=DEVICE)
    shares = torch.softmax(logits.double() / 0.8, dim=0)
    by_row = parameters([(0.8, 0, 1.0, 0.0)] * num_rows)
    counters = (torch.full((num_rows,), 1234, device=DEVICE), torch.arange(num_rows, device=DEVICE))
    whole = (logits.repeat(num_rows, 1), *by_row, *counters)
    with dispatch.use("reference"):
        drawn = sample(*whole)
    first = torch.empty(num_launched, dtype=torch.int64, device=DEVICE)
    head = [column[:num_launched] for column in whole]
    launch(head[0], first, *head[1:], draws=True, config=KernelConfig({"BLOCK": 16}, 4, 1))
    assert torch.equal(first, drawn[:num_launched])
    counts = torch.bincount(drawn, minlength=10).double()
    assert counts[3] == 0
    possible = shares > 0
    wanted = shares[possible] * num_rows
    assert ((counts[possible] - wanted).square() / wanted).sum() < 27.9


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_that_leave_no_choice(temperature: float) -> None:
    lone = torch.full((5, 40), float("-inf"))
    lone[0, 33] = -1e30
    lone[1, 3], lone[1, 20] = float("nan"), 1.0
    lone[2, 5] = float("inf")
    lone[4, 17] = 3e38
    by_row = parameters([(temperature, 5, 0.9, 0.1)] * 5)
    counters = torch.arange(5, device=DEVICE)
    drawn = sample(lone.to(DEVICE), *by_row, counters, counters)
    assert drawn.tolist() == [33, NO_TOKEN, NO_TOKEN, NO_TOKEN, 17]


def test_no_rows() -> None:
    nothing = torch.empty(0, dtype=torch.int64, device=DEVICE)
    assert sample(torch.empty(0, 9, device=DEVICE), *parameters([]), nothing, nothing).shape == (0,)


def test_the_reference_keeps_the_same() -> None:
    rows = [(0.7, 5, 0.9, 0.0), (0.0, 0, 1.0, 0.0), (1.0, 0, 0.5, 0.1), (1.3, 30, 1.0, 0.0)]
    logits, by_row = some_logits(4, 100, torch.bfloat16, "ties", 3), parameters(rows)
    with dispatch.use("reference"):
        reference = filter_logits(logits, *by_row)
    assert torch.equal(filter_logits(logits, *by_row), reference)
    for out, values, row in zip(reference.cpu(), logits.cpu(), rows, strict=True):
        kept = {token for token, number in enumerate(out.tolist()) if number != float("-inf")}
        assert kept == kept_by_hand(values.double().tolist(), row, 0.0)


@pytest.mark.parametrize(("name", "place"), [("temperature", 1), ("top_k", 2), ("seeds", 5)])
def test_a_parameter_of_another_shape_or_dtype_is_refused(name: str, place: int) -> None:
    counters = torch.arange(2, device=DEVICE)
    arguments = [torch.zeros(2, 9, device=DEVICE), *parameters([(1.0, 0, 1.0, 0.0)] * 2), counters, counters]
    for wrong in (arguments[place][:1], arguments[place].double()):
        with pytest.raises(ValueError, match=f"{name} is .*it must be"):
            sample(*arguments[:place], wrong, *arguments[place + 1 :])


def test_logits_that_are_no_rows_and_gradients_are_refused() -> None:
    counters, by_row = torch.arange(2, device=DEVICE), parameters([(1.0, 0, 1.0, 0.0)] * 2)
    with pytest.raises(ValueError, match=r"must be \[S, V\]"):
        sample(torch.zeros(9, device=DEVICE), *by_row, counters, counters)
    with pytest.raises(ValueError, match="compute no gradients"):
        sample(torch.zeros(2, 9, device=DEVICE, requires_grad=True), *by_row, counters, counters)
