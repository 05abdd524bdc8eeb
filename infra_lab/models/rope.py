"""Rotary frequencies, plain and stretched for contexts longer than the model was trained on.

Plane i of a head turns by position · theta^(-2i/D). Long-context variants change these frequencies:
linear divides them all (Chen 2023); llama3 divides only the slow ones; yarn blends by how often a plane turns within the
original context (Peng 2023). "dynamic" changes them as the text grows, which would make cached keys stale: it is the
plain table as long as positions stay within the original context, and refused beyond.
"""

import math

import torch

from infra_lab.errors import UnsupportedModelError
from infra_lab.models.config import ModelConfig, RopeScaling


def inverse_frequencies(config: ModelConfig) -> tuple[torch.Tensor, float]:
    """Return the angle per position of each plane, [D/2] float32, and the factor on cos and sin."""
    planes = torch.arange(0, config.head_dim, 2, dtype=torch.int64).float()
    base = 1.0 / config.rope_theta ** (planes / config.head_dim)  # [D/2]
    scaling = config.rope_scaling
    if scaling is None or scaling.kind == "dynamic":
        return base, 1.0
    if scaling.kind == "linear":
        return base / scaling.factor, 1.0
    if scaling.kind == "llama3":
        return _llama3(base, scaling), 1.0
    return _yarn(base, scaling, config)


def _llama3(base: torch.Tensor, scaling: RopeScaling) -> torch.Tensor:
    wavelength = 2 * math.pi / base
    turns = scaling.original_max_position / wavelength  # turns within the original context
    keep = ((turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)).clamp(0, 1)
    return base * keep + base / scaling.factor * (1 - keep)


def _yarn(base: torch.Tensor, scaling: RopeScaling, config: ModelConfig) -> tuple[torch.Tensor, float]:
    def plane_that_turns(times: float) -> float:
        context = scaling.original_max_position
        return config.head_dim * math.log(context / (times * 2 * math.pi)) / (2 * math.log(config.rope_theta))

    low, high = plane_that_turns(scaling.beta_fast), plane_that_turns(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, config.head_dim - 1)
    width = max(high - low, 0.001)
    interpolate = ((torch.arange(config.head_dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
    frequencies = base / scaling.factor * interpolate + base * (1 - interpolate)
    return frequencies, _yarn_attention_factor(scaling)


def _yarn_attention_factor(scaling: RopeScaling) -> float:
    def magnitude(mscale: float) -> float:
        return 1.0 if scaling.factor <= 1 else 0.1 * mscale * math.log(scaling.factor) + 1.0

    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        return magnitude(scaling.mscale) / magnitude(scaling.mscale_all_dim)
    return magnitude(1.0)


class RotaryTable:
    """cos and sin of every position, in the model's dtype; sin signed for `kernels.apply_rotary`."""

    def __init__(self, config: ModelConfig, max_position: int, dtype: torch.dtype, device: torch.device) -> None:
        scaling = config.rope_scaling
        if scaling is not None and scaling.kind == "dynamic" and max_position > scaling.original_max_position:
            raise UnsupportedModelError(
                f"dynamic RoPE scaling beyond {scaling.original_max_position} tokens would change the keys that are "
                f"already cached; set max_model_len to at most {scaling.original_max_position} (it is {max_position})"
            )
        frequencies, factor = inverse_frequencies(config)
        angles = torch.outer(torch.arange(max_position, dtype=torch.float32), frequencies)  # [P, D/2]
        cos, sin = angles.cos() * factor, angles.sin() * factor
        self.cos = torch.cat([cos, cos], dim=-1).to(device, dtype)  # [P, D]
        self.sin = torch.cat([-sin, sin], dim=-1).to(device, dtype)

    def at(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cos and sin of positions [T], each [T, 1, D]."""
        return self.cos[positions].unsqueeze(1), self.sin[positions].unsqueeze(1)
