"""From a quantized weight to the layer that runs it fastest here.

    weight                                       CPU                             GPU
    4 bits or fewer, groups of 32 … 256          Int4Linear                      W4A16Linear
    8 bits, symmetric, a scale a row             Int8Linear                      Int8Linear
    the same, activations in 8 bits              Int8ActivationLinear            Int8ActivationLinear
    8 bits, symmetric, in groups (Q8_0)          SplitInt8Linear                 TiledLinear
    FP8                                          Float8Linear                    Float8Linear
    NF4, MXFP4, NVFP4; all that fits nowhere     TiledLinear                     TiledLinear

Each of torch's CPU kernels is tried once on a small matrix; where it fails, the tiled product serves.
"""

import torch

import kernels
from infra_lab.errors import ConfigError
from infra_lab.quantization.cpu_int4 import has_int4_kernel
from infra_lab.quantization.float_weights import Float8Weight, TableWeight
from infra_lab.quantization.grouped import GroupedInt
from infra_lab.quantization.linear import Int8Linear, Linear, int8_codes
from infra_lab.quantization.linear_int4 import Int4Linear, MiddleGroups, W4A16Linear, middle_groups
from infra_lab.quantization.linear_split_int8 import SplitInt8Linear
from infra_lab.quantization.linear_tiled import TiledLinear
from infra_lab.quantization.linear_w8a8 import Float8Linear, Int8ActivationLinear

QuantizedWeight = GroupedInt | Float8Weight | TableWeight


def linear_of(
    weight: QuantizedWeight,
    bias: torch.Tensor | None,
    device: torch.device,
    dtype: torch.dtype,
    *,
    int8_activations: bool = False,
    input_scale: float | None = None,
) -> Linear:
    """Build the layer of a quantized weight [out, in] for an engine on `device` in `dtype`.

    `int8_activations` goes with 8-bit symmetric weights of one group a row, `input_scale` (static activations) with FP8. Raises
    ConfigError for a weight that cannot have what is asked of it.
    """
    bias = None if bias is None else bias.to(device, dtype)
    if isinstance(weight, Float8Weight):
        return Float8Linear(Float8Weight(weight.q.to(device), weight.scale.to(device)), bias, input_scale)
    if isinstance(weight, TableWeight):
        parts = (part.to(device) for part in (weight.packed, weight.scale, weight.tensor_scale))
        return TiledLinear(TableWeight(weight.format, *parts), bias)
    weight = GroupedInt(
        weight.q.to(device), weight.scale.to(device), weight.zero.to(device), weight.bits, weight.group_size
    )
    if _is_int8_by_row(weight):
        q, scale = int8_codes(weight)
        if int8_activations:
            return Int8ActivationLinear(q, scale, bias)
        return Int8Linear.from_codes(q, scale, bias, dtype)
    if int8_activations:
        raise ConfigError(
            f"activations of 8 bits need symmetric 8-bit weights with one scale a row; these have {weight.bits} bits in "
            f"groups of {weight.group_size}"
        )
    return _grouped_linear(weight, bias, device, dtype)


def _is_int8_by_row(weight: GroupedInt) -> bool:
    is_whole_row = weight.bits == 8 and weight.group_size == weight.shape[1]
    return is_whole_row and bool((weight.zero == 128).all()) and bool((weight.q > 0).all())  # -128 has no positive


def _grouped_linear(weight: GroupedInt, bias: torch.Tensor | None, device: torch.device, dtype: torch.dtype) -> Linear:
    if weight.bits <= 4:
        return linear_of_middle(middle_groups(weight), bias, device, dtype)
    fits = device.type == "cpu" and has_int4_kernel() and Int4Linear.fits(weight.shape[0], weight.group_size)
    if fits and weight.bits == 8 and SplitInt8Linear.fits(weight):
        return SplitInt8Linear(weight, bias, dtype)
    return TiledLinear(weight, bias)


def linear_of_middle(
    weight: MiddleGroups, bias: torch.Tensor | None, device: torch.device, dtype: torch.dtype
) -> Linear:
    """Build the layer of weights of at most 4 bits, for an engine on `device` in `dtype`."""
    if kernels.launches_on(device) and W4A16Linear.fits(weight.group_size, dtype):
        return W4A16Linear(weight, bias, dtype)
    if device.type == "cpu" and has_int4_kernel() and Int4Linear.fits(weight.q.shape[0], weight.group_size):
        return Int4Linear(weight, bias)
    return TiledLinear(weight.grouped(), bias)
