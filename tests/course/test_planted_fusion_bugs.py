"""Each planted bug breaks what it says and nothing else; the lesson counts on it."""

import pytest
import torch
import torch.nn.functional as F

import kernels
from infra_lab import LLM, SamplingParams
from infra_lab.course.planted_fusion_bugs import FUSION_BUGS, TILE, planted_fusion_bug
from infra_lab.errors import ConfigError


def add_and_norm(bug: str) -> tuple[bool, bool]:
    """Whether the norm and the residual are right."""
    x, residual, weight = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)).split(1)
    total = (x + residual).double()
    expected = total / (total.pow(2).mean() + 1e-5).sqrt() * weight
    with planted_fusion_bug(bug):
        y = kernels.add_rms_norm(x, residual, weight[0], 1e-5)
    return torch.allclose(y.double(), expected, atol=1e-5), torch.allclose(residual.double(), total, atol=1e-6)


def attends(bug: str, num_keys: int) -> bool:
    """Whether attention over so many keys is softmax(q · K) · V."""
    generator = torch.Generator().manual_seed(1)
    cache = 3 * torch.randn(4, 16, 2, 1, 8, generator=generator)
    query = 3 * torch.randn(1, 2, 8, generator=generator)
    group = kernels.QueryGroup(0, 1, 1, num_keys, slice(0, 4), None, False)
    key, value = (cache.flatten(0, 1)[:num_keys, part, 0].double() for part in (0, 1))
    expected = F.softmax(query[0].double() @ key.T / 8**0.5, dim=-1) @ value
    with planted_fusion_bug(bug):
        return torch.allclose(kernels.paged_attention(query, cache, [group])[0].double(), expected, atol=1e-4)


def text(bug: str, prompt: str, max_tokens: int) -> list[int]:
    with planted_fusion_bug(bug):
        llm = LLM("tiny", dtype="float32", device="cpu")
        greedy = SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True)
        return list(llm.generate([prompt], greedy)[0].token_ids)


@pytest.mark.parametrize(
    ("bug", "right"),
    [("none", (True, True, True, True)), ("A", (False, True, True, True)), ("B", (True, False, True, True)),
     ("C", (True, True, True, False))],
)  # fmt: skip
def test_a_bug_breaks_one_thing(bug: str, right: tuple[bool, ...]) -> None:
    assert (*add_and_norm(bug), attends(bug, TILE), attends(bug, TILE + 1)) == right


def test_only_a_long_text_shows_the_tiles() -> None:
    short, long = ("The module", 4), ("Return the number of items in the list, or raise", 12)
    right = [text("none", *short), text("none", *long)]
    assert text("C", *short) == right[0]
    assert text("C", *long) != right[1]
    for bug in ("A", "B"):
        assert text(bug, *short) != right[0]


def test_the_right_kernels_come_back() -> None:
    before = {name: getattr(kernels, name) for bug in FUSION_BUGS.values() for name in bug}
    with pytest.raises(ZeroDivisionError), planted_fusion_bug("B"):
        raise ZeroDivisionError
    assert {name: getattr(kernels, name) for name in before} == before
    with pytest.raises(ConfigError, match="none, A, B, C"), planted_fusion_bug("D"):
        pass
