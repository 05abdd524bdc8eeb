"""GGUF's blocks of 32 as integers in groups of 32: the same numbers, still packed, for layers that run on integers.

    block    value of a code                        code q               scale    zero point
    Q4_0     d · code - 8 · d                       code                 d        8
    Q4_1     d · code + m                           code                 d        -m / d
             the same with d < 0                    15 - code            -d       15 + m / d    (Q4_0: 7)
             the same with d = 0                    0                    1        -m
    Q8_0     d · code, code in -128 … 127           code + 128           d        128

Two codes share a byte: the low halves of a block's bytes are its first 16 values, the high halves its last.
K-quants are super-blocks of 256 with scales of their own in 6 bits; they are run as floating-point weights.
"""

import torch

from infra_lab.quantization.grouped import GroupedInt

_BLOCK = 32
_BLOCK_BYTES = {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}
INTEGER_TYPES = tuple(_BLOCK_BYTES)


def grouped_from_blocks(packed: torch.Tensor, type_name: str, source_rows: torch.Tensor | None = None) -> GroupedInt:
    """Return the integers of packed rows (uint8 [rows, bytes a row]) of one of INTEGER_TYPES.

    `source_rows` ([rows] int64) names the packed row that each row comes from, as in `dequantize_into`.
    """
    packed = packed if source_rows is None else packed[source_rows]
    blocks = packed.reshape(packed.shape[0], -1, _BLOCK_BYTES[type_name])  # [rows, groups, bytes]
    scale = _halves(blocks[..., :2])
    if type_name == "Q8_0":
        codes = blocks[..., 2:] ^ 128  # a signed byte plus 128 is its highest bit turned
        return _grouped(codes, scale, torch.full_like(scale, 128.0), 8)
    halves = blocks[..., -_BLOCK // 2 :]
    codes = torch.cat([halves & 15, halves >> 4], dim=2)
    minimum = -8 * scale if type_name == "Q4_0" else _halves(blocks[..., 2:4])
    codes = torch.where((scale < 0).unsqueeze(2), 15 - codes, codes).masked_fill_((scale == 0).unsqueeze(2), 0)
    lowest = torch.where(scale < 0, minimum + 15 * scale, minimum)  # the value of q = 0
    scale = torch.where(scale == 0, 1.0, scale.abs())
    return _grouped(codes, scale, -lowest / scale, 4)


def _halves(data: torch.Tensor) -> torch.Tensor:
    return data.contiguous().view(torch.float16).float().squeeze(-1)


def _grouped(codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, bits: int) -> GroupedInt:
    return GroupedInt(codes.reshape(codes.shape[0], -1).contiguous(), scale, zero, bits, _BLOCK)
