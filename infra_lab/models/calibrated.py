"""Quantize a loaded model with texts running through it: GPTQ, AWQ, SmoothQuant, static FP8.

True-sequential: layer by layer, and in a layer qkv, o, gate_up, down, each with the inputs that the already quantized part
before it produces. Hidden states are kept for one layer at a time, so that this runs where the dense model fits.

While a layer is walked through, its quantized matrices stand in as dense ones that take unchanged inputs: Ŵ · diag(s)⁻¹ for
weights that want theirs divided by s. When the layer is done, the divisions are folded (see `folding`) and the packed
layers put in.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

import torch

from infra_lab.errors import ConfigError
from infra_lab.models.config import ModelConfig
from infra_lab.models.layer_walk import MATRICES, LayerWalk, Matrix
from infra_lab.models.transformer import CausalLM, DecoderLayer
from infra_lab.quantization import DenseLinear, linear_of
from infra_lab.quantization.awq import clipped_rtn, output_error, search_clip, search_scale
from infra_lab.quantization.float_weights import Float8Weight, quantize_fp8_weight
from infra_lab.quantization.folding import divide_rows, share_among_heads, up_row_divisors, value_row_divisors
from infra_lab.quantization.gptq import gptq, made_up
from infra_lab.quantization.grouped import GroupedInt, rtn
from infra_lab.quantization.observers import AbsMax, Hessian
from infra_lab.quantization.recipes import Recipe
from infra_lab.quantization.schemes import group_size_for
from infra_lab.quantization.smoothquant import smoothing_factors
from kernels.quantize import FP8_LIMIT

SINK_WEIGHT = 16
"""All later tokens look at a text's first one (the attention sink, Xiao 2023), so errors in its key and value are in all."""

Progress = Callable[[int, int], None]
"""Called with (done, total)."""


@dataclass(frozen=True, slots=True)
class Target:
    """One matrix to quantize, and what runs into it."""

    name: str
    """e.g. "model.layers.3.qkv"."""
    matrix: Matrix
    weight: torch.Tensor
    """[out, in] float32."""
    inputs: torch.Tensor
    """[texts · length, in], of the model as far as it is quantized."""
    full_inputs: torch.Tensor
    """[texts · length, in], of the model as it was."""
    length: int
    """Tokens of each text."""
    config: ModelConfig


@dataclass(frozen=True, slots=True)
class Quantized:
    """What has become of it."""

    weight: GroupedInt | Float8Weight | torch.Tensor
    factors: torch.Tensor | None = None
    """[in]: the weight was multiplied by them, and its inputs are to be divided by them; None: neither."""
    input_scale: float | None = None
    """Of static FP8 activations."""

    def dense(self) -> torch.Tensor:
        """The weight for inputs that are not divided, float32 [out, in]."""
        dense = self.weight if isinstance(self.weight, torch.Tensor) else self.weight.dequantize()
        return dense if self.factors is None else dense / self.factors


Method = Callable[[Target], Quantized]


@torch.no_grad()
def quantize_layers(
    model: CausalLM, token_ids: torch.Tensor, method: Method, recipe: Recipe, *, progress: Progress | None = None
) -> None:
    """Replace the dense matrices of all layers, in place and in the order in which tokens meet them, by what `method` makes.

    token_ids: what to calibrate on, [texts, tokens] (see `calibration`); `progress` is called after each matrix; embedding
    and output layer stay. Raises ConfigError for a model that is not dense, and what the method raises.
    """
    walk, full, total = LayerWalk(model, token_ids), LayerWalk(model, token_ids), len(model.layers) * len(MATRICES)
    for index, layer in enumerate(model.layers):
        full_stops = full.through(replace(layer))  # a copy, which keeps the dense matrices
        dense = {matrix: dense_layer(layer, matrix) for matrix in MATRICES}
        done: dict[Matrix, Quantized] = {}
        for matrix, inputs in walk.through(layer):
            weight, bias = dense[matrix].weight, dense[matrix].bias
            name = f"model.layers.{index}.{matrix}"
            full_inputs = next(full_stops).inputs
            done[matrix] = method(
                Target(name, matrix, weight.float(), inputs, full_inputs, token_ids.shape[1], model.config)
            )
            setattr(layer, matrix, DenseLinear(done[matrix].dense().to(weight.dtype), bias))
            if progress is not None:
                progress(len(MATRICES) * index + len(done), total)
        next(full_stops, None)  # through what comes after the last stop
        install(layer, done, model.config, int8_activations=recipe.int8_activations)


def dense_layer(layer: DecoderLayer, matrix: Matrix) -> DenseLinear:
    """Return a matrix of a dense model; raises ConfigError if it is not dense."""
    found = getattr(layer, matrix)
    if not isinstance(found, DenseLinear):
        raise ConfigError(f"{matrix} is a {type(found).__name__}; calibration starts from dense weights")
    return found


def install(
    layer: DecoderLayer, done: dict[Matrix, Quantized], config: ModelConfig, *, int8_activations: bool = False
) -> None:
    """Fold the factors into what produces each input, and put the packed layers into their places."""
    heads = (config.num_heads, config.num_kv_heads, config.head_dim)
    divisors: dict[Matrix, torch.Tensor] = {}
    for matrix, quantized in done.items():
        if (factors := quantized.factors) is None:
            continue
        match matrix:
            case "qkv":
                layer.input_norm = (layer.input_norm / factors).to(layer.input_norm.dtype)
            case "gate_up":
                layer.post_attention_norm = (layer.post_attention_norm / factors).to(layer.post_attention_norm.dtype)
            case "o":
                divisors["qkv"] = value_row_divisors(factors, *heads)
            case "down":
                divisors["gate_up"] = up_row_divisors(factors)
    for matrix, quantized in done.items():
        dense = dense_layer(layer, matrix)
        weight, bias = quantized.weight, dense.bias
        if matrix in divisors:
            weight = divide_rows(cast(GroupedInt, weight), divisors[matrix])
            bias = None if bias is None else bias / divisors[matrix]
        if isinstance(weight, torch.Tensor):
            setattr(layer, matrix, DenseLinear(weight.to(dense.weight.dtype), bias))
            continue
        packed = linear_of(
            weight,
            bias,
            dense.weight.device,
            dense.weight.dtype,
            int8_activations=int8_activations,
            input_scale=quantized.input_scale,
        )
        setattr(layer, matrix, packed)


def method_of(recipe: Recipe) -> Method:
    """Return the method of a recipe that treats every matrix alike."""
    methods: dict[str, Callable[[Target, Recipe], Quantized]] = {
        "rtn": _rtn,
        "gptq": _gptq,
        "awq": _awq,
        "smoothquant": _smoothquant,
        "static": _static_fp8,
    }
    return lambda target: methods[recipe.method](target, recipe)


def _rtn(target: Target, recipe: Recipe) -> Quantized:
    return Quantized(rtn(target.weight, recipe.bits, _group_size(target, recipe), name=target.name))


def _gptq(target: Target, recipe: Recipe) -> Quantized:
    return quantize_gptq(target, recipe.bits, _group_size(target, recipe))


def quantize_gptq(target: Target, bits: int, group_size: int) -> Quantized:
    """Quantize a target by GPTQ, towards what the full model would put out; the first token of each text counts more."""
    weights = token_weights(target)
    hessian = Hessian()
    hessian.observe(target.inputs * weights.sqrt().unsqueeze(1))
    wanted = made_up(target.weight, target.full_inputs.float(), target.inputs.float(), token_weights=weights)
    return Quantized(gptq(wanted, hessian.matrix, bits, group_size, name=target.name))


def token_weights(target: Target) -> torch.Tensor:
    """Return how much each token counts, [texts · length] float32: in front of qkv the first of a text SINK_WEIGHT-fold."""
    weights = torch.ones(target.inputs.shape[0], device=target.inputs.device)
    if target.matrix == "qkv":
        weights[:: target.length] = SINK_WEIGHT
    return weights


def _awq(target: Target, recipe: Recipe) -> Quantized:
    observed, bits, size = Hessian(), recipe.bits, _group_size(target, recipe)
    observed.observe(target.inputs)
    hessian, magnitudes = observed.matrix, observed.magnitudes
    if target.matrix == "o":
        magnitudes = share_among_heads(magnitudes, target.config.num_kv_heads, target.config.head_dim)
    found = search_scale(target.weight, hessian, magnitudes, lambda w: rtn(w, bits, size).dequantize())
    tried = []
    for factors in (torch.ones_like(found.factors), found.factors):  # clipping alone, and with the scales
        scaled = target.weight * factors
        clip = search_clip(scaled, hessian / torch.outer(factors, factors), bits, size)
        if target.matrix == "qkv":  # scores multiply queries' errors with keys': the layer's own error says too little
            clip[: (target.config.num_heads + target.config.num_kv_heads) * target.config.head_dim] = 1
        quantized = Quantized(clipped_rtn(scaled, clip, bits, size, target.name), factors)
        tried.append((output_error(target.weight - quantized.dense(), hessian), quantized))
    return min(tried, key=lambda pair: pair[0])[1]


def _smoothquant(target: Target, recipe: Recipe) -> Quantized:
    del recipe
    factors = None
    weight = target.weight
    if target.matrix in ("qkv", "gate_up"):
        largest = AbsMax()
        largest.observe(target.inputs)
        factors = smoothing_factors(largest.channels, weight.abs().amax(dim=0), name=target.name)
        weight = weight * factors
    return Quantized(rtn(weight, 8, weight.shape[1], symmetric=True, name=target.name), factors)


def _static_fp8(target: Target, recipe: Recipe) -> Quantized:
    del recipe
    largest = AbsMax()
    largest.observe(target.inputs)
    return Quantized(quantize_fp8_weight(target.weight, target.name), input_scale=max(largest.whole, 1e-12) / FP8_LIMIT)


def _group_size(target: Target, recipe: Recipe) -> int:
    return group_size_for(target.weight.shape[1], recipe, target.name)
