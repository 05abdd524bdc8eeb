"""Which implementation runs, and what is said when it cannot."""

import subprocess
import sys

import pytest
import torch

import kernels
from kernels.dispatch import launches_on, use_triton

CPU = torch.device("cpu")


def test_the_variable_and_the_block_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFRA_LAB_KERNELS", "triton")
    assert launches_on(CPU)
    with kernels.use("reference"):
        assert not launches_on(CPU)
        assert not use_triton(torch.ones(1))
        with kernels.use("auto"):
            assert not launches_on(CPU), "no GPU"
    assert launches_on(CPU)
    monkeypatch.setenv("INFRA_LAB_KERNELS", "cuda")
    with pytest.raises(ValueError, match="'cuda'; it must be one of auto, triton, reference"):
        kernels.mode()
    with pytest.raises(ValueError, match="no mode 'fast'"), kernels.use("fast"):  # type: ignore[arg-type]
        pass


def test_tensors_of_two_devices_are_refused() -> None:
    with kernels.use("triton"), pytest.raises(ValueError, match="cpu, meta; move them"):
        use_triton(torch.ones(1), torch.ones(1, device="meta"))


def test_on_a_cpu_triton_must_interpret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with kernels.use("triton"), pytest.raises(kernels.triton_api.KernelUnavailableError, match="TRITON_INTERPRET=1"):
        use_triton(torch.ones(1))


def test_an_engine_without_a_gpu_does_not_load_triton() -> None:
    """It is 80 MB, which the engine's memory once had too much."""
    code = (
        "import sys, os; os.environ.pop('TRITON_INTERPRET', None); from infra_lab import LLM; "
        "LLM('tiny', device='cpu', num_kv_blocks=8).generate(['x']); print('triton' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"
