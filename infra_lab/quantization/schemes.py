"""Which quantization a name stands for, and how it builds a model's layers one by one."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from infra_lab.errors import ConfigError
from infra_lab.quantization.float_weights import quantize_fp8_weight, quantize_to_table
from infra_lab.quantization.grouped import GroupedInt, effective_group_size, rtn
from infra_lab.quantization.layers import QuantizedWeight, linear_of
from infra_lab.quantization.linear import DenseLinear, Int8Linear, Linear, PrepackedLinear, RowLinear, can_prepack
from infra_lab.quantization.linear_joined import JoinedLinear
from infra_lab.quantization.linear_split_int8 import SplitInt8Linear
from infra_lab.quantization.recipes import DENSE, RECIPES, Recipe

LoadedWeight = torch.Tensor | GroupedInt
"""What a checkpoint hands out: floating-point rows, or, from a .gguf file, its blocks."""


@dataclass(frozen=True, slots=True)
class LinearScheme:
    """How the linear layers of a model are stored."""

    recipe: Recipe = DENSE

    @property
    def is_dense(self) -> bool:
        """Whether nothing is quantized."""
        return self.recipe.weights == "dense"

    @property
    def keeps_blocks(self) -> bool:
        """Whether a checkpoint's own packed blocks are wanted, instead of numbers made of them."""
        return self.recipe.weights == "gguf"

    def quantize(self, weight: torch.Tensor, name: str) -> QuantizedWeight:
        """Round one matrix [out, in] to the nearest in the recipe's format; `name` is for error messages.

        Raises ConfigError for NaN or infinite weights, a width without a group size, and a recipe that needs calibration.
        """
        recipe = self.recipe
        if recipe.needs_calibration or recipe.weights in ("dense", "gguf", "mixed"):
            raise ConfigError(f"{recipe.name} is more than rounding one matrix; build the model with it instead")
        if recipe.weights == "fp8":
            return quantize_fp8_weight(weight, name)
        if recipe.weights == "int8":
            return rtn(weight, 8, weight.shape[1], symmetric=True, name=name)
        if recipe.weights == "int":
            return rtn(weight, recipe.bits, group_size_for(weight.shape[1], recipe, name), name=name)
        return quantize_to_table(weight, recipe.weights, name)

    def build(self, weight: LoadedWeight, bias: torch.Tensor | None, name: str, *, dtype: torch.dtype) -> Linear:
        """Turn one weight [out, in] into a layer for an engine in `dtype`; `name` is for the error messages.

        A recipe that needs calibration gets dense layers, to be replaced once texts have run through them. Raises what
        `quantize` raises.
        """
        if isinstance(weight, GroupedInt):
            return linear_of(weight, bias, weight.q.device, dtype)
        if self.recipe.needs_calibration:
            return DenseLinear(weight, bias)
        if self.is_dense or self.keeps_blocks:  # a .gguf file has matrices in plain floats, too
            is_packable = weight.device.type == "cpu" and weight.dtype is torch.bfloat16 and can_prepack()
            return PrepackedLinear(weight, bias) if is_packable else DenseLinear(weight, bias)
        if self.recipe.weights == "int8" and not self.recipe.int8_activations:
            return Int8Linear(weight, bias)  # in pieces: these are also the largest matrices
        quantized = self.quantize(weight, name)
        return linear_of(quantized, bias, weight.device, dtype, int8_activations=self.recipe.int8_activations)

    def build_joined(
        self, parts: Sequence[LoadedWeight], bias: torch.Tensor | None, name: str, *, dtype: torch.dtype
    ) -> Linear:
        """Build one layer of rows that a file packs in different ways, such as query and key in 4 bits and value in 8."""
        return JoinedLinear([self.build(part, None, name, dtype=dtype) for part in parts], bias)

    def build_embedding(self, weight: LoadedWeight, *, dtype: torch.dtype) -> RowLinear:
        """The embedding, [V, H]: 8 bits in every quantized scheme, since single rows are looked up in it."""
        if not isinstance(weight, GroupedInt):
            return DenseLinear(weight) if self.is_dense or self.keeps_blocks else Int8Linear(weight)
        layer = linear_of(weight, None, weight.q.device, dtype)
        return layer if isinstance(layer, SplitInt8Linear) else DenseLinear(weight.dequantize(dtype))

    def build_tied_head(self, embedding: RowLinear, *, dtype: torch.dtype) -> Linear:
        """The output layer that shares the embedding's weights.

        Where dense weights are prepacked for the CPU, this is a second copy of them: SmolLM2 takes a fifth more memory, and
        its largest matrix a third of the time.
        """
        if not isinstance(embedding, DenseLinear):
            return embedding
        head = self.build(embedding.weight, None, "lm_head", dtype=dtype)
        return head if isinstance(head, PrepackedLinear) else embedding


def group_size_for(width: int, recipe: Recipe, name: str) -> int:
    """Return the group size of the matrix `name` with `width` inputs; raises ConfigError if there is none."""
    try:
        return effective_group_size(width, recipe.group_size)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None


def parse_scheme(name: str | None) -> LinearScheme:
    """Return the scheme of that name; None is dense. Raises ConfigError for an unknown name, listing the known ones."""
    if name is None:
        return LinearScheme()
    if name not in RECIPES:
        raise ConfigError(f"unknown quantization {name!r}; known: {', '.join(RECIPES)}")
    return LinearScheme(RECIPES[name])
