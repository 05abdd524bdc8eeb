"""What all tests share."""

import pytest

# Helpers next to the tests assert too; let their failures say as much as a test's.
pytest.register_assert_rewrite("tests.paged_kv", "tests.scheduler")
