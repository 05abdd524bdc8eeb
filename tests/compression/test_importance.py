"""Importance against transformers: derivatives of masks, lengths and cosines of its own hidden states."""

from pathlib import Path

import pytest
import torch

from infra_lab.compression.importance import measure_importance
from infra_lab.errors import ConfigError
from tests.compression.models import ALL_BIASES, TEXT, pair, tiny

L, GROUPS, WIDTH, CHANNELS = 3, 2, 48, 160  # of `random_model`: 6 query heads of 16 on 2 KV heads


def test_taylor_is_the_derivative_of_a_mask(tmp_path: Path) -> None:
    reference, model = pair(tmp_path, **ALL_BIASES)
    groups, channels = torch.zeros(L, GROUPS), torch.zeros(L, CHANNELS)
    layers = torch.zeros(L)
    for text in TEXT.split(1):
        masks = []
        handles = []
        for layer in reference.model.layers:
            for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
                mask = torch.ones(linear.in_features, dtype=torch.float64, requires_grad=True)
                handles.append(linear.register_forward_pre_hook(lambda _, x, mask=mask: (x[0] * mask,)))
                masks.append(mask)
        gradients = torch.autograd.grad(reference(text, labels=text).loss, masks)
        for handle in handles:
            handle.remove()
        for index in range(L):
            groups[index] += gradients[2 * index].view(GROUPS, WIDTH).sum(dim=1).abs() / 2
            channels[index] += gradients[2 * index + 1].abs() / 2
            layers[index] += (gradients[2 * index].sum() + gradients[2 * index + 1].sum()).abs() / 2
    seen: list[tuple[int, int]] = []
    found = measure_importance(model.requires_grad_(False), TEXT, "taylor", progress=lambda *call: seen.append(call))
    assert torch.allclose(found.groups.float(), groups, rtol=1e-3, atol=1e-6)
    assert torch.allclose(found.channels.float(), channels, rtol=1e-3, atol=1e-6)
    assert torch.allclose(found.layers.float(), layers, rtol=1e-3, atol=1e-6)
    assert seen == [(1, 2), (2, 2)]
    assert all(not p.requires_grad and p.grad is None for p in model.parameters())


@torch.no_grad()
def test_activation_and_influence_are_lengths_and_cosines(tmp_path: Path) -> None:
    reference, model = pair(tmp_path)
    inputs: dict[str, torch.Tensor] = {}
    hidden: list[torch.Tensor] = []
    for index, layer in enumerate(reference.model.layers):
        for kind, linear in (("o", layer.self_attn.o_proj), ("down", layer.mlp.down_proj)):
            linear.register_forward_pre_hook(lambda _, x, name=f"{kind}{index}": inputs.update({name: x[0]}))
        layer.register_forward_pre_hook(lambda _, x: hidden.append(x[0]))
    reference.model.norm.register_forward_pre_hook(lambda _, x: hidden.append(x[0]))
    reference(TEXT)
    activation = measure_importance(model, TEXT, "activation")
    influence = measure_importance(model, TEXT, "influence")
    for index, layer in enumerate(reference.model.layers):
        for group in range(GROUPS):
            columns = slice(group * WIDTH, (group + 1) * WIDTH)
            added = inputs[f"o{index}"][..., columns] @ layer.self_attn.o_proj.weight[:, columns].T
            length = added.norm(dim=-1).square().mean().sqrt()
            assert float(activation.groups[index, group]) == pytest.approx(float(length), rel=1e-4)
        for channel in (0, 7, CHANNELS - 1):
            added = inputs[f"down{index}"][..., channel, None] * layer.mlp.down_proj.weight[:, channel]
            length = added.norm(dim=-1).square().mean().sqrt()
            assert float(activation.channels[index, channel]) == pytest.approx(float(length), rel=1e-4)
        before, after = hidden[index], hidden[index + 1]
        share = ((after - before).norm(dim=-1) / before.norm(dim=-1)).square().mean().sqrt()
        assert float(activation.layers[index]) == pytest.approx(float(share), rel=1e-4)
        cosine = (before * after).sum(-1) / before.norm(dim=-1) / after.norm(dim=-1)
        assert float(influence.layers[index]) == pytest.approx(1 - float(cosine.mean()), abs=1e-5)
    assert not influence.groups.any()


def test_what_cannot_be_measured() -> None:
    model = tiny()
    with pytest.raises(ConfigError, match="criterion is 'magic'; expected one of taylor, activation, influence"):
        measure_importance(model, TEXT, "magic")  # type: ignore[arg-type]
    for shape in ((0, 8), (2, 1), (8,)):
        with pytest.raises(ConfigError, match="at least one of two tokens"):
            measure_importance(model, torch.zeros(shape, dtype=torch.int64), "taylor")
    with torch.no_grad():
        model.layers[2].self_attn.k_proj.weight[3, 3] = float("nan")
    with pytest.raises(ConfigError, match=r"layers\.2\.self_attn\.k_proj\.weight has NaN"):
        measure_importance(model, TEXT, "influence")
    with torch.no_grad():
        model.layers[2].self_attn.k_proj.weight[3, 3] = 0
        model.layers[1].mlp.down_proj.weight.fill_(3e38)  # finite, but sums of it are not
    with pytest.raises(ConfigError, match="scores that are not finite"):
        measure_importance(model, TEXT, "activation")
