import pytest

pytest.register_assert_rewrite("kv_world", "cache_model")
