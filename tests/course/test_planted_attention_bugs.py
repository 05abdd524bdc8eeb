"""Each planted bug breaks the property that the lesson says, and no other; without one all hold."""

import numpy as np
import pytest
import torch

import kernels
from infra_lab.course import planted_attention_bugs
from infra_lab.course.planted_attention_bugs import ATTENTION_BUGS, PlantedBug, planted_attention_bug
from infra_lab.errors import ConfigError
from kernels.flash_attention import flash_attention

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BLOCK = 32
"""Keys that the kernel takes at a time in float32."""
BROKEN = {
    "none": set(),
    "A": {"several blocks", "any order"},
    "B": {"several blocks", "any order", "weights sum to one"},
    "C": {"large scores"},
    "D": {"an odd end"},
}


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    starts = [torch.tensor([0, len(x)], dtype=torch.int32, device=DEVICE) for x in (query, key)]
    with kernels.use("triton"), np.errstate(all="ignore"):
        return flash_attention(query, key, value, *starts, len(query), causal=False)


def is_exact(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> bool:
    scores = torch.einsum("qhd,khd->hqk", query.double(), key.double()) / query.shape[-1] ** 0.5
    exact = torch.einsum("hqk,khd->qhd", scores.softmax(-1), value.double())
    return torch.allclose(attend(query, key, value).double(), exact, atol=1e-4)


def broken() -> set[str]:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(8, 1, 16, generator=generator).to(DEVICE)
    key, value = torch.randn(2, 3 * BLOCK, 1, 16, generator=generator).to(DEVICE)
    properties = {
        "one block": is_exact(query, key[:BLOCK], value[:BLOCK]),
        "several blocks": is_exact(query, key, value),
        "any order": torch.allclose(attend(query, key, value), attend(query, key.flip(0), value.flip(0)), atol=1e-4),
        "weights sum to one": torch.allclose(attend(query, key, torch.ones_like(value)), torch.ones(()).to(query)),
        "large scores": bool(attend(1000 * query, key, value).isfinite().all()),
        "an odd end": is_exact(query, key[:20], value[:20]),
    }
    return {name for name, holds in properties.items() if not holds}


@pytest.mark.parametrize("bug", ATTENTION_BUGS)
def test_a_bug_breaks_what_it_should(bug: str) -> None:
    with planted_attention_bug(bug):
        assert broken() == BROKEN[bug]
    assert broken() == set()


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="known: none, A"), planted_attention_bug("Z"):
        pass
    monkeypatch.setitem(planted_attention_bugs.ATTENTION_BUGS, "A", PlantedBug("", (("no such line", ""),)))
    with pytest.raises(ConfigError, match="'no such line' 0 times"), planted_attention_bug("A"):
        pass
