"""No kernel reads or writes beside its tensors, at sizes that fill no block: neither with an effect nor without one."""

import pytest
import torch

import kernels
from kernels.triton_api import is_interpreting
from tests.kernels.fences import fenced
from tests.kernels.launches import BUILDS, TINY, Launch

pytestmark = pytest.mark.skipif(not is_interpreting(), reason="every access is seen by the interpreter only")
CPU = torch.device("cpu")


def results(launch: Launch, poison: float) -> list[torch.Tensor]:
    with fenced(launch.inputs, poison) as (inputs, _):
        return [result.clone() for result in launch.run(inputs)]


@pytest.mark.parametrize("tokens", [1, 7])
@pytest.mark.parametrize("name", BUILDS)
def test_nothing_beside_the_tensors(name: str, tokens: int) -> None:
    torch.manual_seed(tokens)
    launch = BUILDS[name](CPU, TINY, tokens, torch.float32 if tokens == 1 else torch.bfloat16)
    first = results(launch, float("nan"))
    for one, other in zip(first, results(launch, 3.0), strict=True):
        assert torch.equal(one.view(torch.uint8), other.view(torch.uint8)), "it depends on what lies beside"
    for actual, exact in zip(first, launch.exact(launch.inputs), strict=True):
        launch.check(actual, exact)


def test_a_read_beside_a_tensor_is_seen() -> None:
    """The last 3 of 8 columns belong to nobody."""
    x = torch.randn(2, 5)
    with pytest.raises(AssertionError, match="accesses beyond all tensors"), fenced({"x": x}, 0.0) as (inputs, _):
        kernels.rms_norm(inputs["x"].as_strided((2, 8), (8, 1)), torch.ones(8), 1e-5)


def test_a_write_beside_a_tensor_is_seen() -> None:
    x, weight = torch.randn(2, 5), torch.randn(8)
    fences = fenced({"residual": x, "x": torch.randn(2, 8), "weight": weight}, 0.0)
    with pytest.raises(AssertionError, match="written beside residual"), fences as (inputs, _):
        kernels.add_rms_norm(inputs["x"], inputs["residual"].as_strided((2, 8), (8, 1)), inputs["weight"], 1e-5)
