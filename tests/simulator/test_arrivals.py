"""Arrival processes against what defines them: rate, variation of the gaps, counts by time of day."""

import numpy as np
import pytest

from infra_lab.errors import ConfigError
from infra_lab.simulator.arrivals import (
    ArrivalProcess,
    DiurnalArrivals,
    GammaArrivals,
    PoissonArrivals,
    SpikeArrivals,
)

N = 40_000


@pytest.mark.parametrize("cv", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("rate", [0.01, 50.0])
def test_gaps_of_gamma_arrivals(rate: float, cv: float) -> None:
    times = np.array(GammaArrivals(rate_per_s=rate, cv=cv).times_s(num_requests=N, seed=1))
    gaps = np.diff(times, prepend=0.0)
    assert (gaps >= 0).all()
    assert gaps.mean() * rate == pytest.approx(1.0, abs=4 * cv / np.sqrt(N))  # four standard errors of a mean
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.1)


def test_counts_of_poisson_arrivals_have_the_variance_of_their_mean() -> None:
    times = PoissonArrivals(rate_per_s=20.0).times_s(duration_s=2_000.0, seed=2)
    counts = np.bincount(np.array(times).astype(int), minlength=2_000)
    assert counts.mean() == pytest.approx(20.0, abs=4 * np.sqrt(20 / 2_000))
    assert counts.var() == pytest.approx(20.0, rel=4 * np.sqrt(2 / 2_000))


def test_a_day_follows_its_sine() -> None:
    process = DiurnalArrivals(rate_per_s=40.0, amplitude=0.8, period_s=240.0)
    times = np.array(process.times_s(duration_s=2_400.0, seed=3))
    counts = np.bincount((times % 240.0 / 10.0).astype(int), minlength=24)
    edges = np.arange(25) / 24 * 2 * np.pi
    expected = 4_000 * (1 - 0.8 * np.diff(np.sin(edges)) / np.diff(edges))  # the sine's integral over each "hour"
    assert (np.abs(counts - expected) < 4.5 * np.sqrt(expected)).all()


def test_a_day_follows_its_profile() -> None:
    weights = (1.0, 0.0, 3.0, 4.0)
    process = DiurnalArrivals(rate_per_s=10.0, hourly=weights, period_s=400.0)
    counts = np.bincount((np.array(process.times_s(duration_s=4_000.0)) % 400.0 // 100.0).astype(int), minlength=4)
    assert counts[1] == 0
    assert counts == pytest.approx(np.array(weights) * 5_000, abs=4 * np.sqrt(20_000))


def test_a_spike_is_ten_times_as_high_while_it_lasts() -> None:
    times = np.array(SpikeArrivals(rate_per_s=50.0, start_s=100.0, spike_s=50.0).times_s(duration_s=300.0))
    inside = ((times >= 100) & (times < 150)).sum()
    assert inside == pytest.approx(25_000, abs=4 * np.sqrt(25_000))
    assert len(times) - inside == pytest.approx(12_500, abs=4 * np.sqrt(12_500))


@pytest.mark.parametrize(
    "process",
    [
        PoissonArrivals(rate_per_s=3.0),
        GammaArrivals(rate_per_s=3.0),
        DiurnalArrivals(rate_per_s=3.0),
        SpikeArrivals(rate_per_s=3.0, start_s=1.0, spike_s=1.0),
    ],
    ids=lambda process: process.kind,
)
def test_ends_and_seeds(process: ArrivalProcess) -> None:
    times = process.times_s(num_requests=500, seed=7)
    assert len(times) == 500
    assert times == sorted(times) == process.times_s(num_requests=500, seed=7) != process.times_s(num_requests=500)
    assert process.times_s(num_requests=500, duration_s=times[99] + 1e-9, seed=7) == times[:100]
    assert process.times_s(duration_s=1e-6) == []


def test_more_requests_than_a_batch_go_on_where_it_ended() -> None:
    times = PoissonArrivals(rate_per_s=1000.0).times_s(num_requests=150_000)
    assert len(times) == 150_000
    assert max(np.diff(times)) < 0.05


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: PoissonArrivals(rate_per_s=-1.0), "rate_per_s"),
        (lambda: PoissonArrivals(rate_per_s=float("nan")), "rate_per_s"),
        (lambda: GammaArrivals(rate_per_s=1.0, cv=0.0), "cv"),
        (lambda: DiurnalArrivals(rate_per_s=1.0, amplitude=1.5), "amplitude"),
        (lambda: DiurnalArrivals(rate_per_s=1.0, hourly=(0.0, 0.0)), "hourly"),
        (lambda: SpikeArrivals(rate_per_s=1.0, start_s=-1.0, spike_s=1.0), "start_s"),
        (lambda: SpikeArrivals(rate_per_s=1.0, start_s=1.0, spike_s=1.0, factor=0.1), "factor"),
        (lambda: PoissonArrivals(rate_per_s=1.0).times_s(), "num_requests"),
        (lambda: PoissonArrivals(rate_per_s=1.0).times_s(num_requests=0), "num_requests"),
        (lambda: PoissonArrivals(rate_per_s=1.0).times_s(duration_s=-2.0), "duration_s"),
    ],
)
def test_no_process(make: object, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        make()  # type: ignore[operator]
