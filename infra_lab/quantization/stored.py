"""A linear layer as named tensors and a few options, and back: what a quantized checkpoint is made of.

    kind      tensors                               options
    dense     weight
    int8      q int8, scale                                                   w8a8: the same, activations in 8 bits
    int4      codes (packed), scale, middle         bits: as few as the codes need, so 3-bit weights take 3 bits here
    grouped   codes (packed), scale, zero           bits, group_size
    fp8       q float8_e4m3fn, scale                input_scale
    table     packed, scale, tensor_scale           format: nf4, mxfp4, nvfp4
    joined    those of its parts, "0.q", "1.q", …   parts: their options

What a layer holds is stored as it is, scales in the dtype that its kernel has them in: loaded on the same kind of machine, the
model gives the same logits to the last bit; another machine builds the layer that it runs fastest.
"""

from collections.abc import Mapping
from typing import Any

import torch

from infra_lab.errors import ConfigError
from infra_lab.quantization.float_weights import Float8Weight, TableWeight
from infra_lab.quantization.grouped import GroupedInt
from infra_lab.quantization.layers import linear_of, linear_of_middle
from infra_lab.quantization.linear import DenseLinear, Int8Linear, Linear, PrepackedLinear
from infra_lab.quantization.linear_int4 import Int4Linear, MiddleGroups, W4A16Linear
from infra_lab.quantization.linear_joined import JoinedLinear
from infra_lab.quantization.linear_split_int8 import SplitInt8Linear
from infra_lab.quantization.linear_tiled import TiledLinear
from infra_lab.quantization.linear_w8a8 import Float8Linear, Int8ActivationLinear
from infra_lab.quantization.packing import pack_bits, unpack_bits

Options = dict[str, Any]
"""Plain JSON."""
Tensors = dict[str, torch.Tensor]


def layer_to_tensors(layer: Linear) -> tuple[Options, Tensors]:
    """Return what is needed to build the layer again, tensors on the CPU. Raises ConfigError for a layer of another kind."""
    options, tensors = _parts_of(layer)
    if (bias := getattr(layer, "bias", None)) is not None:
        tensors["bias"] = bias
    return options, {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}


def _parts_of(layer: Linear) -> tuple[Options, Tensors]:
    match layer:
        case DenseLinear():
            return {"kind": "dense"}, {"weight": layer.weight}
        case PrepackedLinear():
            return {"kind": "dense"}, {"weight": layer.packed.to_dense()}
        case Int8Linear():
            return {"kind": "int8"}, {"q": layer.quantized, "scale": layer.scale}
        case Int8ActivationLinear():
            return {"kind": "w8a8"}, {"q": layer.q, "scale": layer.scale}
        case Int4Linear() | W4A16Linear():
            return _middle_parts(layer.weights())
        case SplitInt8Linear():
            return _grouped_parts(layer.weights())
        case Float8Linear():
            return {"kind": "fp8", "input_scale": layer.input_scale}, {"q": layer.weight.q, "scale": layer.weight.scale}
        case TiledLinear(weight=GroupedInt() as grouped):
            return _grouped_parts(grouped)
        case TiledLinear(weight=TableWeight() as table):
            parts = {"packed": table.packed, "scale": table.scale, "tensor_scale": table.tensor_scale}
            return {"kind": "table", "format": table.format}, parts
        case JoinedLinear():
            stored = [layer_to_tensors(part) for part in layer.parts]
            named = {f"{i}.{name}": tensor for i, (_, part) in enumerate(stored) for name, tensor in part.items()}
            return {"kind": "joined", "parts": [options for options, _ in stored]}, named
    raise ConfigError(f"a layer of type {type(layer).__name__} cannot be saved")


def _middle_parts(weight: MiddleGroups) -> tuple[Options, Tensors]:
    low, high = int(weight.q.min()), int(weight.q.max())
    bits = next(bits for bits in (2, 3, 4) if low >= 8 - 2 ** (bits - 1) and high < 8 + 2 ** (bits - 1))
    codes = pack_bits(weight.q - (8 - 2 ** (bits - 1)), bits)
    options = {"kind": "int4", "bits": bits, "shape": list(weight.q.shape)}
    return options, {"codes": codes, "scale": weight.scale, "middle": weight.middle}


def _grouped_parts(weight: GroupedInt) -> tuple[Options, Tensors]:
    options = {"kind": "grouped", "bits": weight.bits, "shape": list(weight.shape), "group_size": weight.group_size}
    return options, {"codes": pack_bits(weight.q, weight.bits), "scale": weight.scale, "zero": weight.zero}


def layer_from_tensors(
    options: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], device: torch.device, dtype: torch.dtype
) -> Linear:
    """Build the layer that `layer_to_tensors` described, for an engine on `device` in `dtype`.

    Raises KeyError or ValueError for options and tensors that do not belong together: the caller knows the file's name.
    """
    kind, bias = options["kind"], tensors.get("bias")
    placed = {name: tensor.to(device) for name, tensor in tensors.items()}
    bias = None if bias is None else bias.to(device, dtype)
    match kind:
        case "dense":
            return DenseLinear(placed["weight"].to(dtype), bias)
        case "int8":
            return Int8Linear.from_codes(placed["q"], placed["scale"], bias, dtype)
        case "w8a8":
            return Int8ActivationLinear(placed["q"], placed["scale"], bias)
        case "int4":
            bits = options["bits"]
            q = unpack_bits(placed["codes"], bits, tuple(options["shape"])) + (8 - 2 ** (bits - 1))
            return linear_of_middle(MiddleGroups(q, placed["scale"], placed["middle"]), bias, device, dtype)
        case "grouped":
            q = unpack_bits(placed["codes"], options["bits"], tuple(options["shape"]))
            grouped = GroupedInt(q, placed["scale"], placed["zero"], options["bits"], options["group_size"])
            return linear_of(grouped, bias, device, dtype)
        case "fp8":
            return Float8Linear(Float8Weight(placed["q"], placed["scale"]), bias, options["input_scale"])
        case "table":
            parts = (placed["packed"], placed["scale"], placed["tensor_scale"])
            return TiledLinear(TableWeight(options["format"], *parts), bias)
        case "joined":
            layers = []
            for index, part in enumerate(options["parts"]):
                own = {
                    name.split(".", 1)[1]: tensor for name, tensor in tensors.items() if name.startswith(f"{index}.")
                }
                layers.append(layer_from_tensors(part, own, device, dtype))
            return JoinedLinear(layers, bias)
    raise ValueError(f"layers of kind {kind!r} are not known")
