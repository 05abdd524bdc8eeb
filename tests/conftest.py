"""What all tests share."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports `kernels`: what is not a GPU interprets

# Helpers next to the tests assert too; let their failures say as much as a test's.
pytest.register_assert_rewrite("tests.paged_kv", "tests.scheduler")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test marked `smollm2` may take the model for there."""
    from infra_lab.models.fetch import cached_model

    if item.get_closest_marker("smollm2") is not None and cached_model("smollm2-135m") is None:
        pytest.skip("SmolLM2 is not in the cache; run `infra-lab fetch smollm2-135m`")
