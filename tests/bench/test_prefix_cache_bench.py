"""The benchmark does the work that it says it times (no test looks at the times themselves)."""

import pytest

from infra_lab.bench.prefix_cache import measure_prefix_cache
from infra_lab.errors import ConfigError


def test_every_size_does_the_same_work() -> None:
    rows = measure_prefix_cache(num_requests=200, cache_sizes=(4096, 5000))
    assert [(row.cache_blocks, row.cache_tokens, row.num_requests) for row in rows] == [
        (4096, 65_536, 200),
        (5000, 80_000, 200),
    ]
    for row in rows:
        assert row.hit_rate == 0.5  # 256 shared tokens of 512
        assert row.evictions_per_request == 16  # 256 own tokens / 16, in a cache that is always full
        assert row.ratio_to_hashing == row.p50_us / row.hashing_us
    assert rows[0].ratio_to_smallest_cache == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"num_requests": 1}, "num_requests is 1"), ({"cache_sizes": (4096, 4095)}, "a cache of 4095 blocks")],
)
def test_settings_that_measure_nothing_are_refused(arguments, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        measure_prefix_cache(**arguments)
