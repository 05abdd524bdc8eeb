"""KV cache formats: what a key or value looks like after it was stored in fewer bits.

Keys and values are rounded the way a compressed cache would round them and returned in their own dtype, so that a model can
be run on them and the loss measured. The ranges follow KIVI (Liu 2024): values and 8-bit formats take one scale a token and
head; keys have a few channels that are much larger than the others, so low-bit keys need one scale a channel.
"""

from typing import Literal, get_args

import torch

from infra_lab.errors import ConfigError

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
    if kv_format == "fp8":
        pair = [_fp8(key), _fp8(value)]
    else:
        largest = 2 ** (BITS[kv_format] - 1) - 1
        key_dim = 0 if kv_format == "int4-channel-keys" else -1
        pair = [_integers(key, largest, key_dim), _integers(value, largest, -1)]
    return torch.stack(pair, dim=1).to(kv.dtype)


def _integers(x: torch.Tensor, largest: int, dim: int) -> torch.Tensor:
    scale = x.abs().amax(dim=dim, keepdim=True).clamp_min(1e-12) / largest
    return (x / scale).round().clamp(-largest, largest) * scale


def _fp8(x: torch.Tensor) -> torch.Tensor:
    scale = x.abs().amax(dim=-1, keepdim=True).clamp_min(1e-12) / torch.finfo(torch.float8_e4m3fn).max
    return (x / scale).to(torch.float8_e4m3fn).float() * scale
