"""KV cache formats: what a key or value looks like after it was stored in fewer bits.

Keys and values are rounded the way a compressed cache would round them and returned in their own dtype, so that a model can
be run on them and the loss measured. The ranges follow KIVI (Liu 2024): values and 8-bit formats take one scale a token and
head; keys have a few channels that are much larger than the others, so low-bit keys need one scale a channel. The engine
itself stores "int8" and "fp8", rounded alike (`EngineConfig.kv_dtype`).
"""

from typing import Literal, get_args

import torch

from infra_lab.errors import ConfigError
from kernels.kv_store import dequantize
from kernels.quantize import quantize_fp8, quantize_int8

KVFormat = Literal["fp8", "int8", "int4", "int4-channel-keys"]
KV_FORMATS: tuple[str, ...] = get_args(KVFormat)
BITS: dict[str, int] = {"fp8": 8, "int8": 8, "int4": 4, "int4-channel-keys": 4}


def kv_round_trip(kv: torch.Tensor, kv_format: str) -> torch.Tensor:
    """Store kv [T, 2, Hkv, D] (keys, then values) in `kv_format` and read it back: same shape and dtype.

    "fp8" is e4m3 with one scale a token and head; "int8" and "int4" are symmetric with one scale a token and head;
    "int4-channel-keys" scales keys by channel over the T tokens instead. Raises ConfigError for another format.
    """
    if kv_format not in KV_FORMATS:
        raise ConfigError(f"unknown KV format {kv_format!r}; known: {', '.join(KV_FORMATS)}")
    key, value = kv.float().unbind(1)  # each [T, Hkv, D]
    if BITS[kv_format] == 8:
        pair = [_in_8_bits(key, kv_format), _in_8_bits(value, kv_format)]
    else:
        pair = [_int4(key, 0 if kv_format == "int4-channel-keys" else -1), _int4(value, -1)]
    return torch.stack(pair, dim=1).to(kv.dtype)


def _in_8_bits(x: torch.Tensor, kv_format: str) -> torch.Tensor:
    values, scales = quantize_int8(x) if kv_format == "int8" else quantize_fp8(x)
    return dequantize(values, scales.squeeze(-1), x.dtype)


def _int4(x: torch.Tensor, dim: int) -> torch.Tensor:
    scale = x.abs().amax(dim=dim, keepdim=True).clamp_min(1e-12) / 7
    return (x / scale).round().clamp(-7, 7) * scale
