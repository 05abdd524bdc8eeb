"""Launchers as they would run on a GPU, up to the launch: each compiles, fits, and compiles once whatever a step's size."""

import pytest

from tests.kernels.compiling import reports_of
from tests.kernels.launches import BUILDS

NUM_PARTS = 6
"""Importing Triton takes longer than compiling most kernels, so that a process gets several."""


def test_a_step_of_another_size_compiles_nothing_anew() -> None:
    """A kernel may have other blocks for more tokens, as its launcher decides; but with these it is one."""
    reports = reports_of("tests.kernels.dry_launch", "keys")
    assert {report["case"] for report in reports} == set(BUILDS)
    several = [(report["case"], report["kernel"], report["constants"]) for report in reports if len(report["keys"]) > 1]
    assert not several


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "names"),
    [*(("90", list(BUILDS)[part::NUM_PARTS]) for part in range(NUM_PARTS)), ("100", ["fp8_matmul"])],
)
def test_launches_at_a_models_size_compile_and_fit(target: str, names: list[str]) -> None:
    reports = reports_of("tests.kernels.dry_launch", "compile", target, *names)
    assert len(reports) >= len(names), "a kernel each, at least"
    for report in reports:
        assert report["spill_bytes"] == 0, report
        assert report["fits"], report
