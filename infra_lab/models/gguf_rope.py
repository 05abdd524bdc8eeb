"""RoPE scaling as GGUF stores it: as key-values for linear and YaRN, as a tensor of divisors for Llama 3.

Llama 3's file does not carry the four numbers of its scaling, only what came of them: `rope_freqs.weight`, by which
each plane's frequency is divided. All published Llama 3 models share three of the numbers, and the fourth, the factor,
is the largest divisor; so we compute the divisors that these would give, and accept them if they are the file's.
"""

from dataclasses import replace

import torch

from infra_lab.errors import CorruptModelError, UnsupportedModelError
from infra_lab.models.config import ModelConfig, RopeScaling
from infra_lab.models.gguf_config import Metadata
from infra_lab.models.rope import inverse_frequencies

ROPE_DIVISORS = "rope_freqs.weight"
_SCALING = "{arch}.rope.scaling."
_LLAMA3_ORIGINAL_TOKENS = 8192
_MAX_RELATIVE_ERROR = 1e-3
"""The divisors are stored as float32 and were computed from float32 frequencies."""


def rope_scaling_from_keys(meta: Metadata, max_position: int) -> RopeScaling | None:
    """Return the scaling that the key-values describe; raises UnsupportedModelError for a kind that we do not run."""
    factor = meta.number(_SCALING + "factor", meta.number("{arch}.rope.scale_linear", 1.0))
    kind = meta.text(_SCALING + "type", "linear")
    if kind == "none" or (kind == "linear" and factor in (0.0, 1.0)):
        return None
    if factor <= 0.0:
        raise CorruptModelError(f"{meta.path}: RoPE scaling factor is {factor}, expected more than 0; fetch it again")
    original = meta.integer(_SCALING + "original_context_length", max_position)
    if kind == "linear":
        return RopeScaling(kind="linear", factor=factor, original_max_position=original)
    if kind != "yarn":
        raise meta.unsupported(_SCALING + "type", "the engine runs none, linear, yarn, and Llama 3's divisors")
    for key in ("yarn_ext_factor", "yarn_attn_factor", "yarn_log_multiplier", "attn_factor"):
        if meta.number(_SCALING + key, 1.0) != 1.0:
            raise meta.unsupported(_SCALING + key, "only YaRN as in its paper is supported")
    return RopeScaling(
        kind="yarn",
        factor=factor,
        original_max_position=original,
        beta_fast=meta.number(_SCALING + "yarn_beta_fast", 32.0),
        beta_slow=meta.number(_SCALING + "yarn_beta_slow", 1.0),
    )


def rope_scaling_from_divisors(divisors: torch.Tensor, config: ModelConfig, meta: Metadata) -> RopeScaling | None:
    """Return the Llama 3 scaling that gives these divisors, float32 [head_dim / 2].

    Raises UnsupportedModelError if no published Llama 3 scaling gives them.
    """
    if bool((divisors == 1.0).all()):
        return None
    scaling = RopeScaling(kind="llama3", factor=float(divisors.max()), original_max_position=_LLAMA3_ORIGINAL_TOKENS)
    plain, _ = inverse_frequencies(replace(config, rope_scaling=None))
    scaled, _ = inverse_frequencies(replace(config, rope_scaling=scaling))
    if not torch.allclose(plain / scaled, divisors, rtol=_MAX_RELATIVE_ERROR, atol=0.0):
        raise UnsupportedModelError(
            f"{meta.path}: {ROPE_DIVISORS} is not what Llama 3's scaling gives (8192 original tokens, frequency "
            "factors 1 and 4); use the model's Hugging Face folder, whose config.json has the numbers"
        )
    return scaling
