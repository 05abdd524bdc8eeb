"""What all tests share."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports `kernels`: what is not a GPU interprets

# Helpers next to the tests assert too; let their failures say as much as a test's.
pytest.register_assert_rewrite("tests.paged_kv", "tests.scheduler")
