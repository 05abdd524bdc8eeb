import pytest

from infra_lab.paged_kv.block_manager import PREFIX_INDEXES

pytest.register_assert_rewrite("kv_world", "cache_model", "radix_model")


@pytest.fixture(params=PREFIX_INDEXES)
def prefix_index(request: pytest.FixtureRequest) -> str:
    """Each kind of prefix index in turn: what a test says holds for all of them."""
    return request.param
