"""From GGUF's packed rows to floating-point values.

A quantized row is a run of blocks: 32 values (or 256, the K-quants) that share a scale, stored beside their codes.

    Q8_0   scale f16 · 32 signed bytes                                         value = scale · code
    Q4_0   scale f16 · 32 codes of 4 bits                                      value = scale · (code - 8)
    Q4_1   scale f16, minimum f16 · 32 codes of 4 bits                         value = scale · code + minimum
    Q4_K   scale f16, minimum scale f16 · 8 × (scale, minimum) of 6 bits · 256 codes of 4 bits
    Q6_K   256 codes of 4 low bits · 2 high bits · 16 signed byte scales · scale f16

Two codes share a byte: the low halves of a group of bytes come first, then the high halves. The arithmetic is float32
in the order of the gguf library's `gguf.quants`, so the values are equal bit for bit; in torch, on pieces that stay in
the cache, it takes about an eighth of that library's time. No tensor exists whole in float32 unless that was asked for.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

_CHUNK_ELEMENTS = 1 << 17
"""512 KiB in float32: it and its temporaries fit a core's share of the cache."""


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute with this thread alone."""
    # A model is thousands of operations of a tenth of a millisecond: a second thread gains nothing on an idle machine,
    # and on a busy one every operation waits until it is scheduled (seen: 20 s instead of 0.2 s for SmolLM2).
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def dequantize_into(
    out: torch.Tensor, packed: torch.Tensor, type_name: str, source_rows: torch.Tensor | None = None
) -> None:
    """Unpack `packed` (uint8 [rows, bytes a row]) into `out` ([rows, columns], any floating dtype) in small pieces.

    `source_rows` ([rows] int64) names the packed row that each row of `out` comes from: rows are quantized one by one,
    so they can change places before they are unpacked. `type_name` is one of SUPPORTED_TYPES.
    """
    unpack = _UNPACK[type_name]
    num_rows, num_columns = out.shape
    step = max(1, _CHUNK_ELEMENTS // num_columns)
    with one_thread():
        for start in range(0, num_rows, step):
            rows = slice(start, min(start + step, num_rows))
            piece = packed[rows] if source_rows is None else packed[source_rows[rows]]
            out[rows] = unpack(piece.contiguous()).view(-1, num_columns)


def _plain(dtype: torch.dtype) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda packed: packed.view(dtype)


def _halves(data: torch.Tensor) -> torch.Tensor:
    """Read float16 scales: [N, 2·k] bytes to [N, k] float32."""
    return data.contiguous().view(torch.float16).float()


def _nibbles(codes: torch.Tensor) -> torch.Tensor:
    """Split [N, k] bytes into their [N, 2, k] 4-bit halves, low ones first, as float32."""
    values = torch.empty(codes.shape[0], 2, codes.shape[1])
    values[:, 0] = codes & 0x0F
    values[:, 1] = codes >> 4
    return values


def _q8_0(packed: torch.Tensor) -> torch.Tensor:
    blocks = packed.view(-1, 34)
    return blocks[:, 2:].view(torch.int8) * _halves(blocks[:, :2])


def _q4_0(packed: torch.Tensor) -> torch.Tensor:
    blocks = packed.view(-1, 18)
    return _nibbles(blocks[:, 2:]).sub_(8).mul_(_halves(blocks[:, :2]).unsqueeze(1))


def _q4_1(packed: torch.Tensor) -> torch.Tensor:
    blocks = packed.view(-1, 20)
    scale, minimum = _halves(blocks[:, :4]).view(-1, 2, 1, 1).unbind(1)
    # Multiply, then add: one fused operation would round once, where the format's reference rounds twice.
    return _nibbles(blocks[:, 4:]).mul_(scale).add_(minimum)


def _q4_k(packed: torch.Tensor) -> torch.Tensor:
    blocks = packed.view(-1, 144)
    super_scales = _halves(blocks[:, :4])
    # Eight 6-bit scales and minima in 12 bytes: the first four of each whole, the last four as 4 low bits in the third
    # group and 2 high bits on top of the first ones.
    low_scales, low_minima, rest = blocks[:, 4:16].view(-1, 3, 4).unbind(1)
    scales = torch.cat([low_scales & 0x3F, (rest & 0x0F) | ((low_scales >> 2) & 0x30)], dim=1)
    minima = torch.cat([low_minima & 0x3F, (rest >> 4) | ((low_minima >> 2) & 0x30)], dim=1)
    scale = (super_scales[:, :1] * scales).view(-1, 2, 1)  # [groups of 64, halves, 1]
    minimum = (super_scales[:, 1:] * minima).view(-1, 2, 1)
    codes = blocks[:, 16:].reshape(-1, 32)
    return _nibbles(codes).mul_(scale).sub_(minimum)


def _q6_k(packed: torch.Tensor) -> torch.Tensor:
    blocks = packed.view(-1, 210)
    num_blocks = blocks.shape[0]
    low = blocks[:, :128].view(num_blocks, 2, 1, 64)
    low = torch.cat([low & 0x0F, low >> 4], dim=2).view(num_blocks, 2, 4, 32)
    high = blocks[:, 128:192].view(num_blocks, 2, 1, 32)
    high = torch.cat([(high >> shift) & 0x03 for shift in (0, 2, 4, 6)], dim=2)
    codes = (low | (high << 4)).float().sub_(32)
    scale = blocks[:, 192:208].view(torch.int8) * _halves(blocks[:, 208:])  # [blocks, 16]
    return codes.view(num_blocks, 16, 16).mul_(scale.unsqueeze(2))


_UNPACK: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "F32": _plain(torch.float32),
    "F16": _plain(torch.float16),
    "BF16": _plain(torch.bfloat16),
    "Q8_0": _q8_0,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q4_K": _q4_k,
    "Q6_K": _q6_k,
}
SUPPORTED_TYPES = tuple(_UNPACK)
