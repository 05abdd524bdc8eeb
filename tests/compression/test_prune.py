"""Cut models against transformers with the same parts multiplied by zero; what is chosen, and how it heals."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from infra_lab.compression.acceptance import measure_acceptance
from infra_lab.compression.batches import random_windows, training_tokens
from infra_lab.compression.cutting import Kept, remove
from infra_lab.compression.distill import DistillConfig
from infra_lab.compression.importance import Importance
from infra_lab.compression.losses import logit_loss
from infra_lab.compression.prune import PruneConfig, choose, prune, recover
from infra_lab.compression.saving import save_trainable
from infra_lab.data import data_path
from infra_lab.errors import ConfigError
from infra_lab.models.config import ModelConfig
from infra_lab.models.tokenizer import load_tokenizer
from tests.compression.models import ALL_BIASES, TEXT, pair, tiny
from tests.models.hf_models import load_folder, logits_of

TOKENS = training_tokens(load_tokenizer(data_path("tiny")).encode)


@pytest.mark.parametrize(
    ("architecture", "options"), [("llama", ALL_BIASES), ("qwen2", {}), ("qwen3", {"head_dim": 16})]
)
@torch.no_grad()
def test_a_cut_model_is_the_whole_one_with_zeros(tmp_path: Path, architecture: str, options: dict[str, bool]) -> None:
    options = {"num_key_value_heads": 3, **options}
    reference, model = pair(tmp_path, architecture, **options)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    channels = (tuple(range(0, 160, 2)), tuple(range(80, 160)))
    kept = Kept(layers=(0, 2), groups=((0, 2), (1, 2)), channels=channels)
    cut = remove(model, kept)
    for parameter in reference.model.layers[1].parameters():
        if parameter.ndim == 1 or parameter.shape[0] == 96:  # what adds to the stream, with its bias
            parameter.zero_()
    width = reference.model.layers[0].self_attn.o_proj.in_features // 3
    reference.model.layers[0].self_attn.o_proj.weight[:, width : 2 * width] = 0
    reference.model.layers[2].self_attn.o_proj.weight[:, :width] = 0
    reference.model.layers[0].mlp.down_proj.weight[:, 1::2] = 0
    reference.model.layers[2].mlp.down_proj.weight[:, :80] = 0
    assert torch.allclose(cut(TEXT).logits, reference(TEXT).logits, atol=2e-5, rtol=1e-5)
    masked = remove(model, Kept((0, 1, 2), ((0, 1, 2),) * 3, (tuple(range(160)),) * 3))
    masked.load_state_dict(reference.state_dict())
    assert torch.allclose(cut(TEXT).logits, masked(TEXT).logits, atol=1e-12, rtol=1e-12)  # all in float64
    config = cut.config
    assert (config.num_layers, config.num_heads, config.num_kv_heads, config.intermediate_size) == (2, 4, 2, 80)
    assert cut.num_parameters == config.num_parameters
    with torch.no_grad():
        for parameter in cut.parameters():
            parameter.add_(1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@torch.no_grad()
def test_without_layers_that_add_nothing_every_bit_is_the_same() -> None:
    model = tiny()
    for index in (1, 3):
        model.layers[index].self_attn.o_proj.weight.zero_()
        model.layers[index].mlp.down_proj.weight.zero_()
    every = Kept((0, 2), ((0, 1),) * 2, (tuple(range(512)),) * 2)
    assert torch.equal(remove(model, every)(TEXT).logits, model(TEXT).logits)


def test_the_least_important_go_and_the_rest_keeps_its_order() -> None:
    importance = Importance(
        groups=torch.tensor([[1.0, 3.0, 2.0], [9.0, 8.0, 7.0], [0.0, 0.0, 1.0], [5.0, 6.0, 4.0]]),
        channels=torch.arange(8.0).repeat(4, 1) * torch.tensor([1.0, -1.0, 1.0, -1.0]).unsqueeze(1),
        layers=torch.tensor([4.0, 1.0, 3.0, 2.0]),
    )
    config = PruneConfig(heads=0.34, channels=0.5, layers=0.25, channel_multiple=1)
    model = small_config()
    kept = choose(model, importance, config)
    assert kept.layers == (0, 2, 3)
    assert kept.groups == ((1, 2), (0, 2), (0, 1))  # of equals the first
    assert kept.channels == ((4, 5, 6, 7), (4, 5, 6, 7), (0, 1, 2, 3))
    assert kept.layer_map(4) == (1, 2, 3)
    rounded_up = choose(model, importance, replace(config, channel_multiple=3))
    assert [len(row) for row in rounded_up.channels] == [6, 6, 6]


def small_config() -> ModelConfig:
    return replace(tiny().config, num_heads=6, num_kv_heads=3, intermediate_size=8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 1.0}, "heads is 1.0; it is the share to remove"),
        ({"layers": -0.1}, "layers is -0.1"),
        ({"channels": float("nan")}, "channels is nan"),
        ({}, "nothing would be removed"),
        ({"heads": 0.5, "criterion": "influence"}, "heads and channels take taylor or activation"),
        ({"heads": 0.5, "criterion": "magic"}, "criterion is 'magic'; expected one of"),
        ({"heads": 0.5, "channel_multiple": 0}, "channel_multiple is 0"),
        ({"heads": 0.9}, "a share of 0.9 removes all 2 KV-head groups; at least one has to stay"),
        ({"layers": 0.99}, "removes all 4 layers"),
        ({"layers": 0.1}, r"removes none of 4 layers; one of them is 0\.250"),
        ({"channels": 0.01}, "leaves 507, and in multiples of 16 that is all of them"),
    ],
)
def test_impossible_shares(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        prune(tiny(), TEXT, PruneConfig(**options))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        (Kept((0,), ((0,), (0,)), ((0,),)), "for each layer that stays"),
        (Kept((), (), ()), "layers to keep are"),
        (Kept((4,), ((0,),), ((0,),)), "expected some of 0 to 3"),
        (Kept((1, 0), ((0,),) * 2, ((0,),) * 2), "in rising order"),
        (Kept((0, 1), ((0,), (0, 1)), ((0,),) * 2), r"layers would keep \[1, 2\] KV-head groups"),
        (Kept((0,), ((2,),), ((0,),)), "KV-head groups to keep are"),
        (Kept((0,), ((0,),), ((3, 3),)), "MLP channels to keep are"),
    ],
)
def test_impossible_cuts(kept: Kept, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        remove(tiny(), kept)


def test_query_heads_stay_a_multiple_of_kv_heads() -> None:
    with pytest.raises(ConfigError, match="num_heads is 5; it must be a multiple of num_kv_heads, 2"):
        replace(tiny().config, num_heads=5)


@torch.no_grad()
def kl_to(model: object, original: object, text: torch.Tensor) -> float:
    return float(logit_loss(model(text).logits, original(text).logits, 1.0))  # type: ignore[operator]


def test_measured_importance_beats_its_opposite_and_recovery_heals(tmp_path: Path) -> None:
    original = tiny()
    texts = next(random_windows(TOKENS, batch_size=6, length=64, seed=5))
    unseen = next(random_windows(TOKENS, batch_size=6, length=64, seed=6))
    config = PruneConfig(channels=0.5, layers=0.25, heads=0.5)
    pruned = prune(original, texts, config)
    opposite = Importance(
        *(-part for part in (pruned.importance.groups, pruned.importance.channels)), pruned.importance.layers
    )
    worse = remove(original, choose(original.config, opposite, config))
    before = kl_to(pruned.model, original, unseen)
    assert before < kl_to(worse, original, unseen)
    accepted = measure_acceptance(original, pruned.model, unseen).rate
    batches = random_windows(TOKENS, batch_size=4, length=64, seed=7)
    records = recover(
        pruned, original, batches, DistillConfig(steps=30, learning_rate=1e-3, temperature=1.0, hidden_weight=0.05)
    )
    assert len(records) == 30
    assert kl_to(pruned.model, original, unseen) < 0.5 * before
    assert measure_acceptance(original, pruned.model, unseen).rate > accepted + 0.1
    save_trainable(pruned.model, data_path("tiny"), tmp_path / "model", dtype="float32")
    tokens = unseen[0].tolist()
    with torch.no_grad():
        expected = pruned.model(unseen[:1]).logits[0]
    assert (logits_of(load_folder(tmp_path / "model"), tokens) - expected).abs().max() < 1e-3
