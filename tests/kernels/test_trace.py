"""What the trace says a kernel touches is what it must touch."""

import pytest
import torch

import kernels
from kernels.trace import record
from kernels.triton_api import KernelUnavailableError, is_interpreting

pytestmark = pytest.mark.skipif(not is_interpreting(), reason="tracing is the interpreter's; a GPU runs here")


def test_a_row_is_read_once_and_written_once_by_its_own_program() -> None:
    x, weight = torch.randn(3, 20), torch.randn(20)
    wide = torch.zeros(3, 24)
    wide[:, :20] = x
    with record({"x": wide, "weight": weight}) as accesses:
        kernels.rms_norm(wide[:, :20], weight, 1e-5)
    for row in range(3):
        mine = [access for access in accesses if access.program == (row, 0, 0)]
        (read,) = [access for access in mine if access.tensor == "x"]
        assert read.kind == "load"
        assert read.offsets.tolist() == list(range(24 * row, 24 * row + 20)), "masked lanes touch nothing"
        (written,) = [access for access in mine if access.kind == "store"]
        assert written.tensor == "", "the result is a tensor that nobody named"
        assert len(written.offsets) == 20


def test_nothing_is_watched_afterwards() -> None:
    x, weight = torch.randn(1, 8), torch.randn(8)
    with record({"x": x}) as accesses:
        pass
    kernels.rms_norm(x, weight, 1e-5)
    assert accesses == []


def test_without_the_interpreter_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(KernelUnavailableError, match="TRITON_INTERPRET=1"), record({}):
        pass
