"""Which names there are, and what each stands for.

int8                           8-bit weights, a scale a row
w8a8, smoothquant-w8a8         the same, and activations in 8 bits, a scale a token; with outlier channels smoothed first
{rtn,gptq,awq}-int4-g{32,64,128}, -int3-…      4 or 3 bits in groups: rounded to the nearest, or with calibration
nf4, mxfp4, nvfp4              four-bit codes of a table, a scale a block
fp8, fp8-static                FP8 weights and activations, scales a token or calibrated
mixed-fp8-int4                 FP8, and INT4 where it costs least
gguf                           the blocks of a .gguf file as they are
"""

from dataclasses import dataclass
from typing import Literal

WeightFormat = Literal["dense", "int8", "int", "fp8", "nf4", "mxfp4", "nvfp4", "gguf", "mixed"]
Method = Literal["rtn", "gptq", "awq", "smoothquant", "static", "mixed"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a model's weight matrices are quantized, and its activations."""

    name: str
    weights: WeightFormat
    """"int": integers in groups; "int8": a scale a row."""
    bits: int = 16
    group_size: int = 0
    """Wanted; a width that it does not divide gets the largest that fits (`effective_group_size`). 0: no groups."""
    method: Method = "rtn"
    int8_activations: bool = False

    @property
    def needs_calibration(self) -> bool:
        """Whether texts must run through the model before its weights can be chosen."""
        return self.method != "rtn"


DENSE = Recipe("dense", "dense")
_GROUPED_METHODS: tuple[Method, ...] = ("rtn", "gptq", "awq")
_RECIPES = (
    Recipe("int8", "int8", 8),
    Recipe("w8a8", "int8", 8, int8_activations=True),
    Recipe("smoothquant-w8a8", "int8", 8, method="smoothquant", int8_activations=True),
    *(
        Recipe(f"{method}-int{bits}-g{size}", "int", bits, size, method)
        for bits in (4, 3)
        for method in _GROUPED_METHODS
        for size in (32, 64, 128)
    ),
    Recipe("nf4", "nf4", 4),
    Recipe("mxfp4", "mxfp4", 4),
    Recipe("nvfp4", "nvfp4", 4),
    Recipe("fp8", "fp8", 8),
    Recipe("fp8-static", "fp8", 8, method="static"),
    Recipe("mixed-fp8-int4", "mixed", 8, method="mixed"),
    Recipe("gguf", "gguf"),
)
RECIPES = {recipe.name: recipe for recipe in _RECIPES}
