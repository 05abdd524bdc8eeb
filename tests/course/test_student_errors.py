"""What a check says of an exception in a learner's code, wherever it was raised."""

import pytest
import torch

from infra_lab.course.student_errors import describe_error, is_untouched_stub
from kernels.triton_api import jit

interpreted = pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU a kernel is compiled, and raises nothing")


@jit
def stub(x_ptr):
    raise NotImplementedError


@jit
def wrong(x_ptr):
    raise ValueError("three rows")


def raised_by(kernel) -> BaseException:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - the interpreter's own error, whose class is none of ours
        kernel[(1,)](torch.zeros(1))
    return caught.value


@interpreted
def test_the_interpreters_wrapping_hides_neither_a_stub_nor_a_mistake() -> None:
    assert not isinstance(raised_by(stub), NotImplementedError), "else this test would prove nothing"
    assert is_untouched_stub(raised_by(stub))
    assert describe_error(raised_by(stub)) == "not written yet"
    assert describe_error(raised_by(wrong)) == "ValueError: three rows"
    assert not is_untouched_stub(raised_by(wrong))


def test_a_stub_is_one_without_words() -> None:
    assert is_untouched_stub(NotImplementedError())
    assert not is_untouched_stub(NotImplementedError("later"))
    assert not is_untouched_stub(None)
