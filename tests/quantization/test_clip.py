"""The clips of a grid against trying every one, a group at a time."""

import torch

from infra_lab.quantization.clip import CLIPS, best_clips
from infra_lab.quantization.grouped import grid_of


def test_each_group_gets_the_clip_of_least_cost() -> None:
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(5, 24, generator=generator) ** 3  # tails, so that clipping pays
    column_cost = torch.rand(24, generator=generator) ** 4
    scale, zero = grid_of(w, 3, 8)
    found = best_clips(
        w, (scale, zero), 3, lambda error: (error.square() * column_cost).view(5, 3, 8).sum(dim=2), clips=CLIPS
    )
    assert len(found.unique()) > 2
    for row in range(5):
        for group in range(3):
            columns = slice(8 * group, 8 * group + 8)
            costs = []
            for clip in CLIPS:
                step, middle = scale[row, group].double() * clip, zero[row, group].double()
                q = (w[row, columns].double() / step + middle).round().clamp(0, 7)
                error = w[row, columns].double() - step * (q - middle)
                costs.append(float((error**2 * column_cost[columns].double()).sum()))
            assert costs[CLIPS.index(min(CLIPS, key=lambda clip: abs(clip - float(found[row, group]))))] <= min(
                costs
            ) * (1 + 1e-5)
