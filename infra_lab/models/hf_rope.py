"""RoPE base and scaling from config.json, as transformers 4 and 5 write them.

transformers 4    "rope_theta": 500000.0, "rope_scaling": {"rope_type" (once "type"): "llama3", "factor": 8.0, ...}
transformers 5    "rope_parameters": {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, ...}
"""

from infra_lab.errors import CorruptModelError, UnsupportedModelError
from infra_lab.models.config import RopeScaling
from infra_lab.models.hf_json import Fields

_DEFAULT_THETA = 10_000.0


def rope_from_hf(config: Fields, max_position: int) -> tuple[float, RopeScaling | None]:
    """Return rope_theta and the scaling, None for plain RoPE.

    Raises UnsupportedModelError for a scaling that the engine does not run, CorruptModelError for impossible numbers.
    """
    fields = config.nested("rope_scaling" if config.values.get("rope_scaling") else "rope_parameters")
    if any(isinstance(value, dict) for value in fields.values.values()):
        raise UnsupportedModelError(f"{config.path}: RoPE differs from layer to layer, which is not supported")
    for source in (fields, config):
        if (rotated := source.number("partial_rotary_factor", 1.0)) != 1.0:
            raise UnsupportedModelError(
                f"{config.path}: partial_rotary_factor is {rotated}; the engine rotates whole heads only"
            )
    theta = fields.number("rope_theta", config.number("rope_theta", _DEFAULT_THETA))
    return theta, _scaling(fields, config, max_position)


def _scaling(fields: Fields, config: Fields, max_position: int) -> RopeScaling | None:
    kind = fields.text("rope_type", fields.text("type", "default"))
    if kind == "default":
        return None
    # For llama3 and yarn, the context before it was stretched; "dynamic" starts to stretch at the model's own limit.
    original = config.integer(
        "original_max_position_embeddings", fields.integer("original_max_position_embeddings", max_position)
    )
    if kind in ("linear", "dynamic"):
        scaling = RopeScaling(kind=kind, factor=fields.number("factor"), original_max_position=max_position)  # type: ignore[arg-type]
    elif kind == "llama3":
        scaling = RopeScaling(
            kind="llama3",
            factor=fields.number("factor"),
            original_max_position=original,
            low_freq_factor=fields.number("low_freq_factor"),
            high_freq_factor=fields.number("high_freq_factor"),
        )
    elif kind == "yarn":
        scaling = RopeScaling(
            kind="yarn",
            factor=fields.number("factor", max_position / max(1, original)),
            original_max_position=original,
            beta_fast=fields.number("beta_fast", 32.0) or 32.0,  # transformers takes 0 as "not given", too
            beta_slow=fields.number("beta_slow", 1.0) or 1.0,
            attention_factor=fields.optional_number("attention_factor"),
            mscale=fields.optional_number("mscale"),
            mscale_all_dim=fields.optional_number("mscale_all_dim"),
            truncate=fields.boolean("truncate", True),
        )
    else:
        raise UnsupportedModelError(
            f"{config.path}: RoPE scaling {kind!r} is not supported; the engine runs default, linear, dynamic, "
            "llama3 and yarn"
        )
    is_possible = scaling.factor > 0 and scaling.original_max_position > 0
    if kind == "llama3":
        is_possible = is_possible and 0 < scaling.low_freq_factor < scaling.high_freq_factor
    if not is_possible:
        raise CorruptModelError(
            f"{config.path}: RoPE scaling {dict(fields.values)} is impossible; fetch the model again"
        )
    return scaling
