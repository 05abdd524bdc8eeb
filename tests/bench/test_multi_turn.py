"""The same chats for every kind of cache, and a count of prefill that adds up (no test looks at the times)."""

import pytest

from infra_lab.bench.multi_turn import BLOCK_SIZE, measure_multi_turn
from infra_lab.errors import ConfigError


def test_every_kind_serves_the_same_chats_and_computes_less_of_them() -> None:
    none, by_hash, radix = (measure_multi_turn(kind, num_sessions=4) for kind in ("none", "hash", "radix"))
    assert none.prefill_tokens == none.prompt_tokens
    assert none.prompt_tokens == by_hash.prompt_tokens == radix.prompt_tokens
    assert none.num_requests == by_hash.num_requests == radix.num_requests >= 4 * 6
    assert 2 * radix.prefill_tokens < none.prefill_tokens
    # Hashes leave what is behind the last whole block: less than one block a request.
    extra = by_hash.prefill_tokens - radix.prefill_tokens
    assert 0 < extra < by_hash.num_requests * BLOCK_SIZE
    assert none.num_copies == by_hash.num_copies == 0 < radix.num_copies


def test_no_sessions_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_sessions is 0; it must be at least 1"):
        measure_multi_turn("radix", num_sessions=0)
