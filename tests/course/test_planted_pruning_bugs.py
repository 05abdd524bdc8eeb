"""Each planted bug breaks what it says and nothing else; the lesson counts on it."""

from itertools import pairwise

import pytest
import torch

from infra_lab.compression import prune as pruning
from infra_lab.compression.cutting import Kept, remove
from infra_lab.compression.importance import Importance
from infra_lab.compression.prune import PruneConfig
from infra_lab.compression.trainable import TrainableLM, random_trainable
from infra_lab.course.planted_pruning_bugs import PRUNING_BUGS, planted_pruning_bug
from infra_lab.errors import ConfigError
from infra_lab.models.config import ModelConfig

CONFIG = ModelConfig(
    architecture="llama",
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_layers=3,
    num_heads=6,
    num_kv_heads=3,
    head_dim=8,
    max_position=64,
    tie_word_embeddings=True,
)
TEXT = torch.arange(20).unsqueeze(0)
ALL_GROUPS, ALL_CHANNELS = tuple(range(3)), tuple(range(48))


def model() -> TrainableLM:
    return random_trainable(CONFIG, dtype=torch.float64)


@torch.no_grad()
def cuts_heads() -> bool:
    """Whether a model without its middle KV head is the whole one with that head's columns of o, 16 to 31, at zero."""
    whole = model()
    cut = remove(whole, Kept((0, 1, 2), ((0, 2),) * 3, (ALL_CHANNELS,) * 3))
    for layer in whole.layers:
        layer.self_attn.o_proj.weight[:, 16:32] = 0
    return bool(torch.allclose(cut(TEXT).logits, whole(TEXT).logits, atol=1e-12))


@torch.no_grad()
def cuts_channels() -> bool:
    whole = model()
    cut = remove(whole, Kept((0, 1, 2), (ALL_GROUPS,) * 3, (ALL_CHANNELS[::2],) * 3))
    for layer in whole.layers:
        layer.mlp.down_proj.weight[:, 1::2] = 0
    return bool(torch.allclose(cut(TEXT).logits, whole(TEXT).logits, atol=1e-12))


def keeps_the_best(**shares: float) -> bool:
    """Whether each layer that stays keeps its own highest scores; the layers' scores peak at different channels."""
    scores = torch.stack([torch.arange(48.0), -torch.arange(48.0), (torch.arange(48.0) - 24).abs()])
    importance = Importance(scores[:, :3], scores, torch.tensor([3.0, 1.0, 2.0]))
    kept = pruning.choose(CONFIG, importance, PruneConfig(channels=0.5, channel_multiple=1, **shares))
    best = [{24, 47}, {0, 23}, {0, 47}]
    return all(best[layer] <= set(row) for layer, row in zip(kept.layers, kept.channels, strict=True)) and all(
        a < b for row in kept.channels for a, b in pairwise(row)
    )


def leaves_the_original_alone() -> bool:
    whole = model()
    before = {name: weight.clone() for name, weight in whole.state_dict().items()}
    cut = remove(whole, Kept((0, 2), (ALL_GROUPS,) * 2, (ALL_CHANNELS,) * 2))
    with torch.no_grad():
        for parameter in cut.parameters():
            parameter.add_(1)
    return all(torch.equal(weight, before[name]) for name, weight in whole.state_dict().items())


@pytest.mark.parametrize(
    ("bug", "found"),
    [
        ("none", (True, True, True, True, True)),
        ("A", (False, True, True, True, True)),
        ("B", (True, True, True, False, True)),
        ("C", (True, True, True, True, False)),
    ],
)
def test_each_bug_breaks_one_thing(bug: str, found: tuple[bool, ...]) -> None:
    with planted_pruning_bug(bug):
        with_all_layers, with_fewer = keeps_the_best(), keeps_the_best(layers=1 / 3)
        assert (cuts_heads(), cuts_channels(), with_all_layers, with_fewer, leaves_the_original_alone()) == found
    assert (cuts_heads(), keeps_the_best(layers=1 / 3), leaves_the_original_alone()) == (True,) * 3, (
        "all is right again"
    )
    assert set(PRUNING_BUGS) == {"none", "A", "B", "C"}


def test_an_unknown_bug_is_refused() -> None:
    with pytest.raises(ConfigError, match="there is no bug 'D'"), planted_pruning_bug("D"):
        pass
