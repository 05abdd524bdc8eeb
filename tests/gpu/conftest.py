"""Everything here needs a CUDA GPU, and says so where there is none."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _needs_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU; torch sees none on this machine")
