"""torch's CPU kernel for 4-bit weights: whether it is there, and a way back out of its layout.

    W[o, i] = scale[g, o] · (q[o, i] - 8) + middle[g, o],   g = i // group_size;   scale and middle in bfloat16

The kernel packs codes for the machine's vectors: blocks of B rows (32 with AVX2, 64 with AVX-512), and in a block, column after
column, B/2 bytes of two rows each. Which two, no documentation says; so it is asked: a small matrix with one code set at a
time shows where each row goes.
"""

from functools import cache

import torch
import torch.nn.functional as F

_PIECE_ROWS = 4096


def pack_cpu_int4(q: torch.Tensor) -> torch.Tensor:
    """Pack codes [out, in], 0 … 15, out a multiple of 16: the kernel's uint8 [out, in / 2]."""
    packed = torch.empty(q.shape[0], q.shape[1] // 2, dtype=torch.uint8)
    for start in range(
        0, q.shape[0], _PIECE_ROWS
    ):  # whole blocks: torch wants int32, which of an embedding would be large
        rows = slice(start, start + _PIECE_ROWS)
        packed[rows] = torch._convert_weight_to_int4pack_for_cpu(q[rows].to(torch.int32), 1)
    return packed


def cpu_int4_matmul(x: torch.Tensor, packed: torch.Tensor, group_size: int, scale_middle: torch.Tensor) -> torch.Tensor:
    """Multiply x [T, in] bfloat16 by the packed weights; scale_middle [groups, out, 2] bfloat16. Returns [T, out]."""
    y: torch.Tensor = torch._weight_int4pack_mm_for_cpu(x, packed, group_size, scale_middle)
    return y


def unpack_cpu_int4(packed: torch.Tensor, indices: torch.Tensor | None = None) -> torch.Tensor:
    """Return the codes of the rows `indices` (all if None), uint8 [rows, in]: the inverse of `pack_cpu_int4`."""
    num_rows, block = packed.shape[0], _block_rows()
    whole = num_rows - num_rows % block
    indices = torch.arange(num_rows) if indices is None else indices
    if whole == num_rows:
        return _unpack_blocks(packed, indices, block)
    codes = torch.empty(len(indices), 2 * packed.shape[1], dtype=torch.uint8)
    is_whole = indices < whole  # the last rows are a smaller block
    codes[is_whole] = _unpack_blocks(packed[:whole], indices[is_whole], block)
    codes[~is_whole] = _unpack_blocks(packed[whole:], indices[~is_whole] - whole, num_rows - whole)
    return codes


def _unpack_blocks(packed: torch.Tensor, indices: torch.Tensor, size: int) -> torch.Tensor:
    byte, shift = _places(size)
    within = indices % size
    blocks = packed.view(-1, 2 * packed.shape[1], size // 2)  # [blocks, in, bytes of a column]
    return (blocks[indices // size, :, byte[within]] >> shift[within].unsqueeze(1)) & 15


@cache
def _block_rows() -> int:
    q = torch.zeros(128, 2, dtype=torch.int32)
    q[0, 1] = 1  # the second column of the first row starts the second run of B/2 bytes
    return 2 * int(pack_cpu_int4(q).view(-1).nonzero()[0])


@cache
def _places(num_rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Where a block's rows have their first column: (byte [rows], shift [rows] uint8)."""
    byte, shift = torch.empty(num_rows, dtype=torch.int64), torch.empty(num_rows, dtype=torch.uint8)
    for row in range(num_rows):
        q = torch.zeros(num_rows, 2, dtype=torch.int32)
        q[row, 0] = 1
        packed = pack_cpu_int4(q).view(-1)
        byte[row] = packed.nonzero()[0]
        shift[row] = 0 if int(packed[byte[row]]) == 1 else 4
    return byte, shift


@cache
def has_int4_kernel() -> bool:
    """Whether this torch and this CPU have the kernel, and its layout can be read back, tried out once on small matrices."""
    generator = torch.Generator().manual_seed(0)
    q = torch.randint(0, 16, (80, 64), generator=generator)  # a whole block, or two, and a smaller one
    x = torch.randn(2, 64, generator=generator).to(torch.bfloat16)
    scale_middle = torch.rand(2, 80, 2, generator=generator).to(torch.bfloat16)
    scale, middle = scale_middle.float().repeat_interleave(32, dim=0).unbind(2)
    try:
        packed = pack_cpu_int4(q)
        y = cpu_int4_matmul(x, packed, 32, scale_middle)
        is_read_back = torch.equal(unpack_cpu_int4(packed), q.to(torch.uint8))
    except (AttributeError, RuntimeError, NotImplementedError, IndexError):
        return False
    expected = F.linear(x.float(), (q - 8) * scale.t() + middle.t())
    return is_read_back and torch.allclose(y.float(), expected, atol=0.5, rtol=0.02)
