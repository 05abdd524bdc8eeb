"""Each planted bug breaks what it says and nothing else; the lesson counts on it."""

import pytest
import torch

from infra_lab.course.planted_quantization_bugs import QUANTIZATION_BUGS, planted_quantization_bug
from infra_lab.errors import ConfigError
from infra_lab.quantization import gptq, grouped
from infra_lab.quantization.awq import output_error
from infra_lab.quantization.grouped import GroupedInt
from infra_lab.quantization.linear_int4 import Int4Linear, middle_groups


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def read_back(q: GroupedInt) -> torch.Tensor:
    scale, zero = (part.double().repeat_interleave(q.group_size, dim=1) for part in (q.scale, q.zero))
    return scale * (q.q.double() - zero)


def is_near(group_size: int) -> bool:
    """Whether rounding is off by at most half a step."""
    w = normal(16, 64)
    q = grouped.rtn(w, 4, group_size)
    return bool(((read_back(q) - w).abs() <= 0.5001 * q.scale.repeat_interleave(group_size, dim=1)).all())


def is_packed() -> bool:
    """Whether a packed layer multiplies by the weights that it was given; its activations are bfloat16."""
    q, x = grouped.rtn(normal(16, 64), 4, 32), normal(3, 64, seed=1)
    expected = x.double() @ read_back(q).t()
    return bool((Int4Linear(middle_groups(q))(x) - expected).norm() < 0.01 * expected.norm())


def makes_up() -> bool:
    """Whether GPTQ's output is closer than plain rounding's."""
    w, x = normal(16, 64), normal(200, 64, seed=2) @ normal(64, 64, seed=3)
    hessian = 2 * x.t() @ x / len(x)
    found = gptq.gptq(w, hessian, 3, 64)
    return output_error(w - read_back(found).float(), hessian) < output_error(
        w - read_back(grouped.rtn(w, 3, 64)).float(), hessian
    )


@pytest.mark.parametrize(
    ("bug", "found"),
    [
        ("none", (True, True, True, True)),
        ("A", (False, True, True, True)),
        ("B", (True, True, False, True)),
        ("C", (True, True, True, False)),
    ],
)
def test_each_bug_breaks_one_thing(bug: str, found: tuple[bool, ...]) -> None:
    with planted_quantization_bug(bug):
        assert (is_near(32), is_near(64), is_packed(), makes_up()) == found
    assert is_near(32), "the right function is back"
    assert set(QUANTIZATION_BUGS) == {"none", "A", "B", "C"}


def test_an_unknown_bug_is_refused() -> None:
    with pytest.raises(ConfigError, match="there is no bug 'D'"), planted_quantization_bug("D"):
        pass
