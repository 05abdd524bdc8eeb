"""What `lesson` does to the process it begins in; each case in a process of its own, for Triton is loaded once."""

import os
import subprocess
import sys

import pytest
import torch

KERNEL = """
import torch, triton, triton.language as tl

@triton.jit
def double(x_ptr, BLOCK: tl.constexpr):
    places = x_ptr + tl.arange(0, BLOCK)
    tl.store(places, 2 * tl.load(places))

x = torch.arange(4.0)
double[(1,)](x, BLOCK=4)
assert x.tolist() == [0, 2, 4, 6]
"""


def run(tmp_path, code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    path = tmp_path / "notebook.py"  # Triton reads a kernel's source from its file
    path.write_text(code)
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, str(path)], env={**environment, **variables}, capture_output=True, text=True, check=False
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU, kernels run there")
def test_in_a_lesson_without_a_gpu_a_learners_own_kernel_runs(tmp_path) -> None:
    assert run(tmp_path, KERNEL).returncode != 0, "without a lesson it does not: else this test would prove nothing"
    done = run(tmp_path, 'from infra_lab.course import lesson\nlesson("3.1")\n' + KERNEL)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU, kernels run there")
def test_what_the_learner_has_set_stays(tmp_path) -> None:
    code = 'import os\nfrom infra_lab.course import lesson\nlesson("3.1")\nprint(os.environ.get("TRITON_INTERPRET"))\n'
    assert run(tmp_path, code, TRITON_INTERPRET="0").stdout.endswith("\n0\n")
    assert run(tmp_path, "import triton\n" + code).stdout.endswith("\nNone\n"), "too late: half of it would interpret"
